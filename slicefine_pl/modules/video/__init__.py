"""Video classifiers with backbones of pytorchvideo or transformers, or with I3D."""
