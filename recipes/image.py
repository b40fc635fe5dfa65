"""Fine-tune a pretrained image network with SliceFine; by default EfficientNet-Lite0 on digits, with no model hub.

python recipes/image.py fit                                           # the full run; minutes on two CPU cores
python recipes/image.py fit --data.root DIR                           # DIR/{train,val,test}/<class>/*.jpg
python recipes/image.py fit --data.root DIR --data.split 0.7/0.1/0.2  # DIR/<class>/*.jpg, split here
python recipes/image.py fit --data.root DIR --model.backbone timm/vit_base_patch16_224
python recipes/image.py fit --data.source vtab/pets --data.flip true
python recipes/image.py fit --slicefine null --model.lr 3.0e-4        # full fine-tuning instead
python recipes/image.py predict --model.backbone runs/image/version_0/export --data.predict_images photo.jpg
python recipes/image.py predict --ckpt_path runs/image/version_0/checkpoints/last.ckpt --data.predict_images folder

Images of your own lie in one folder per class, at any depth below it: JPEG, PNG, WebP, AVIF, GIF, BMP, TIFF and others
that Pillow decodes by itself.  A warning counts the files that are not used, and says why.  ``--data.split`` decides by
the content of each file, so that copies stay together; frames of one scene do not.  Without a folder ``test`` the run
ends with validation scores.

Photos of your own are shown at the size of the backbone, half of them mirrored; --data.size, --data.min_area and
--data.flip change that.  The digits have 64 pixels (--data.demo_size) and are never mirrored.  ``test``, ``validate``
and ``predict`` show a trained network what training showed it, and refuse another size, mean or std.
"""

from pathlib import Path

from slicefine_pl.cli import run
from slicefine_pl.data import ImageDataModule
from slicefine_pl.modules import ImageClassifier

if __name__ == "__main__":
    run(ImageClassifier, ImageDataModule, config=Path(__file__).parent / "configs" / "image.yaml")
