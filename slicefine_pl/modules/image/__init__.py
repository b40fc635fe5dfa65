"""Image classifiers over timm, torchvision and transformers."""
