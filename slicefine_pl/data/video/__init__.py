"""Video data modules: Kinetics, UCF101, HMDB51, class folders and lists of videos, or small synthetic demo videos.

Only the frames of a clip are decoded, with PyAV. Training clips depend only on the seed, the epoch and the index of a
video. Unreadable files are replaced, so that all processes have the same number of batches.
"""
