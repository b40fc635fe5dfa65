"""Prune a vision transformer during training from scratch. A grid of such runs fits the scaling law of sparse networks.

python recipes/sparse.py fit                           # 75 % zeros, cubic schedule; under a minute on 2 CPU cores
python recipes/sparse.py fit --sparsity null                                              # the same network, dense
python recipes/sparse.py fit --sparsity null --model.backbone recipes/configs/sparse/vit_32     # as many nonzeros
python recipes/sparse.py fit --sparsity.pattern 2:4 --sparsity.sparsity null --sparsity.targets null
python recipes/sparse.py fit --model.backbone timm/vit_tiny_patch16_224 --model.lr 1.0e-4 # pretrained, from the hub
python recipes/sparse.py fit --model.backbone timm/vit_tiny_patch16_224@random            # the same from scratch
OMP_NUM_THREADS=1 python recipes/sparse.py grid        # 27 runs, a law, plots: 9 minutes; resumes
python recipes/sparse.py grid --grid my_grid.yaml --folder runs/mine --data.root DIR
python recipes/sparse.py predict --model.backbone runs/sparse/version_0/export --data.predict_images photo.jpg

A folder that contains ``config.json`` but no weights, such as those in recipes/configs/sparse, gets random weights. A
name in a library or on a hub gets its pretrained weights, or random ones with the suffix ``@random``.
"""

from pathlib import Path

from slicefine_pl.cli import run
from slicefine_pl.data import ImageDataModule
from slicefine_pl.modules import ImageClassifier

if __name__ == "__main__":
    configs = Path(__file__).parent / "configs"
    run(ImageClassifier, ImageDataModule, config=configs / "sparse.yaml", grid=configs / "sparse_grid.yaml")
