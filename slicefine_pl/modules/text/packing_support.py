"""Test whether a language model keeps packed examples apart. The architecture's name does not show it."""

import torch
from transformers import PreTrainedModel

from slicefine_pl.network.eval_mode import eval_mode

TOKENS = 4  # length of each of the two examples


@torch.no_grad()
def supports_packing(model: PreTrainedModel) -> bool:
    """Whether position ids that restart hide the tokens before them.

    Two rows contain two examples each and differ only in the first one. The logits of the second must be equal.

    Args:
        model: Any causal language model. The train or eval mode of its modules does not change.
    """
    size, device = model.config.vocab_size, model.device
    same = torch.arange(TOKENS, device=device)
    rows = [torch.cat([same + TOKENS * number, same]) % size for number in (1, 2)]
    with eval_mode(model):
        logits = model(input_ids=torch.stack(rows), position_ids=same.repeat(2, 2), use_cache=False).logits
    one, other = logits[:, TOKENS:].float()
    return bool((one - other).abs().max() <= 1e-3 * one.abs().max())  # a leak is as large as the logits themselves
