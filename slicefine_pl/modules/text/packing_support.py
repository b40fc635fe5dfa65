"""Does a language model keep examples apart that share a row?  Tried out, not read from its name."""

import torch
from transformers import PreTrainedModel

from slicefine_pl.network.eval_mode import eval_mode

TOKENS = 4  # of each of the two examples


@torch.no_grad()
def supports_packing(model: PreTrainedModel) -> bool:
    """Whether position ids that start anew hide what comes before them.

    Two rows hold two examples each, and differ in the first only: the logits of the second must not differ.

    Args:
        model: Any causal language model; its modules' modes are left as they were.
    """
    size, device = model.config.vocab_size, model.device
    same = torch.arange(TOKENS, device=device)
    rows = [torch.cat([same + TOKENS * number, same]) % size for number in (1, 2)]
    with eval_mode(model):
        logits = model(input_ids=torch.stack(rows), position_ids=same.repeat(2, 2), use_cache=False).logits
    one, other = logits[:, TOKENS:].float()
    return bool((one - other).abs().max() <= 1e-3 * one.abs().max())  # what leaks is as large as the logits' spread
