"""Does a language model keep examples apart that share a row?  Tried out, not read from its name."""

import torch
from transformers import PreTrainedModel

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
    modes = {part: part.training for part in model.modules()}
    model.eval()  # type: ignore[no-untyped-call]
    try:
        logits = model(input_ids=torch.stack(rows), position_ids=same.repeat(2, 2), use_cache=False).logits
    finally:
        for part, training in modes.items():
            part.training = training
    one, other = logits[:, TOKENS:].float()
    return bool((one - other).abs().max() <= 1e-3 * one.abs().max())  # what leaks is as large as the logits' spread
