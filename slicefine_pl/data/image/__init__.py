"""Image data module: labeled images from class folders, torchvision's datasets, VTAB-1k or demo digits.

Images are decoded to RGB, cropped and normalized as the backbone expects. Training crops depend only on the seed, the
epoch and the index of an image.
"""
