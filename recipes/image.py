"""Fine-tune a pretrained image network with SliceFine. The default is EfficientNet-Lite0 on digits, without a hub.

python recipes/image.py fit                                           # takes minutes on two CPU cores
python recipes/image.py fit --data.root DIR                           # DIR/{train,val,test}/<class>/*.jpg
python recipes/image.py fit --data.root DIR --data.split 0.7/0.1/0.2  # DIR/<class>/*.jpg, split here
python recipes/image.py fit --data.root DIR --model.backbone timm/vit_base_patch16_224
python recipes/image.py fit --data.source vtab/pets --data.flip true
python recipes/image.py fit --slicefine null                          # full fine-tuning instead
python recipes/image.py predict --model.backbone runs/image/version_0/export --data.predict_images photo.jpg
python recipes/image.py predict --ckpt_path runs/image/version_0/checkpoints/last.ckpt --data.predict_images folder

Images of your own are in one folder per class, at any depth below it: JPEG, PNG, WebP, AVIF, GIF, BMP, TIFF and other
formats that Pillow decodes itself. A warning counts the files that are not used, with the reason. ``--data.split``
depends on the content of each file, so copies are in the same split, but frames of one scene may not be. Without a
folder ``test`` the run ends with validation scores.

Photos of your own are resized to the size of the backbone, and half of them are mirrored. --data.size, --data.min_area
and --data.flip change that. The digits have 64 pixels (--data.demo_size) and are not mirrored. ``test``, ``validate``
and ``predict`` present images as training did, and refuse another size, mean or std.
"""

from pathlib import Path

from slicefine_pl.cli import run
from slicefine_pl.data import ImageDataModule
from slicefine_pl.modules import ImageClassifier

if __name__ == "__main__":
    run(ImageClassifier, ImageDataModule, config=Path(__file__).parent / "configs" / "image.yaml")
