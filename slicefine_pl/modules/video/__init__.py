"""Video classifiers over pytorchvideo and transformers, and I3D."""
