"""Fine-tune a pretrained image network with SliceFine; by default EfficientNet-Lite0 on digits, with no model hub.

python recipes/image.py fit                                           # the full run; minutes on two CPU cores
python recipes/image.py fit --data.root DIR                           # DIR/{train,val,test}/<class>/*.jpg
python recipes/image.py fit --data.root DIR --data.split 0.7/0.1/0.2  # DIR/<class>/*.jpg, split here
python recipes/image.py fit --data.root DIR --data.size null --model.backbone timm/vit_base_patch16_224
python recipes/image.py fit --data.source vtab/pets --data.flip true --data.size null
python recipes/image.py fit --slicefine null --model.lr 3.0e-4        # full fine-tuning instead
python recipes/image.py predict --model.backbone runs/image/version_0/export --data.predict_images photo.jpg
python recipes/image.py predict --ckpt_path runs/image/version_0/checkpoints/last.ckpt --data.predict_images folder

Images of your own lie in one folder per class, at any depth below it: JPEG, PNG, WebP, AVIF, GIF, BMP, TIFF and others
that Pillow decodes by itself.  A warning counts the files that are not used, and says why.  Photos want the backbone's
own size (``--data.size null``) and mirrored views (``--data.flip true``); letters and digits must not be mirrored.
``--data.split`` decides by the content of each file, so that copies stay together; frames of one scene do not.  Without
a folder ``test`` the run ends with validation scores.
"""

from pathlib import Path

from slicefine_pl.cli import run
from slicefine_pl.data import ImageDataModule
from slicefine_pl.modules import ImageClassifier

if __name__ == "__main__":
    run(ImageClassifier, ImageDataModule, config=Path(__file__).parent / "configs" / "image.yaml")
