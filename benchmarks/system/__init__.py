"""Bytes sent between processes, behavior after a fault, speed of video decoding."""
