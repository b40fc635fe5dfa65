"""Video data modules: Kinetics, UCF101, HMDB51, class folders and lists of videos, or small synthetic demo videos.

PyAV decodes the frames of a clip, starting at the key frame before it. Training clips depend only on the seed, the
epoch and the index of a video. During training and evaluation an unreadable file is replaced by another video, so that
all processes have the same number of batches.
"""
