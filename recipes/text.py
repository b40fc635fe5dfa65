"""Fine-tune a pretrained text encoder with SliceFine; by default MiniLM on film reviews, with no model hub.

python recipes/text.py fit                                            # the full run; minutes on two CPU cores
python recipes/text.py fit --slicefine.rank 16 --slicefine.interval 50 --slicefine.axis row
python recipes/text.py fit --slicefine null --model.lr 1.0e-4         # full fine-tuning instead
python recipes/text.py fit --data.source my.csv --model.backbone bert-base-uncased
python recipes/text.py predict --ckpt_path runs/text/version_0/checkpoints/last.ckpt --data.predict_text "what a film"
python recipes/text.py predict --model.backbone runs/text/version_0/export --data.predict_file lines.txt
"""

from pathlib import Path

from slicefine_pl.cli import run
from slicefine_pl.data import TextDataModule
from slicefine_pl.modules import TextClassifier

if __name__ == "__main__":
    run(TextClassifier, TextDataModule, config=Path(__file__).parent / "configs" / "text.yaml")
