"""Image classifiers with backbones of timm, torchvision or transformers, or with a module of your own."""
