"""Bytes sent between processes, behaviour after a fault, speed of video decoding."""
