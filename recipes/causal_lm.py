"""Fine-tune a causal language model with SliceFine. The default is SmolLM2-135M on film reviews, without a model hub.

python recipes/causal_lm.py fit                                            # takes minutes on two CPU cores
python recipes/causal_lm.py fit --slicefine.rank 16 --slicefine.interval 10
python recipes/causal_lm.py fit --slicefine null                           # full fine-tuning instead
python recipes/causal_lm.py fit --data.source my.jsonl --data.chat true --data.packing true
python recipes/causal_lm.py predict --model.backbone runs/causal_lm/version_0/export \
    --data.predict_text "Review: what a wonderful film Sentiment:"
"""

from pathlib import Path

from slicefine_pl.cli import run
from slicefine_pl.data import InstructionDataModule
from slicefine_pl.modules import CausalLanguageModel

if __name__ == "__main__":
    run(CausalLanguageModel, InstructionDataModule, config=Path(__file__).parent / "configs" / "causal_lm.yaml")
