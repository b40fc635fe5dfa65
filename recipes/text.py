"""Fine-tune a pretrained text encoder with SliceFine. The default is MiniLM on film reviews, without a model hub.

python recipes/text.py fit                                            # takes minutes on two CPU cores
python recipes/text.py fit --slicefine.rank 16 --slicefine.interval 50 --slicefine.axis row
python recipes/text.py fit --slicefine null                           # full fine-tuning instead
python recipes/text.py fit --data.source my.csv --model.backbone bert-base-uncased
python recipes/text.py fit --data.source my.csv --data.text_columns '[title, body]'    # pairs of texts
python recipes/text.py predict --ckpt_path runs/text/version_0/checkpoints/last.ckpt --data.predict_text "what a film"
python recipes/text.py predict --model.backbone runs/text/version_0/export --data.predict_file lines.txt
python recipes/text.py predict --model.backbone runs/text/version_1/export \
    --data.predict_text "a title" --data.predict_text_pair "its body"                  # a model of pairs

A file to predict contains one text per line, or is a table with the columns of training. ``--data.label_names
'[no, yes]'`` names the classes 0 and 1. Without it, the labels in the file are the names.
"""

from pathlib import Path

from slicefine_pl.cli import run
from slicefine_pl.data import TextDataModule
from slicefine_pl.modules import TextClassifier

if __name__ == "__main__":
    run(TextClassifier, TextDataModule, config=Path(__file__).parent / "configs" / "text.yaml")
