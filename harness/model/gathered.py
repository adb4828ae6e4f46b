"""Features and labels of all ranks of a slice group, in one collective."""

import torch
from torch import Tensor

from harness.parallel.group import Group


def gathered(features_BD: Tensor, labels_B: Tensor, group: Group) -> tuple[Tensor, Tensor]:
    """Features [n, D] and labels [n] of all ranks. Collective over the group."""
    if group.size == 1:
        return features_BD, labels_B
    # Labels are packed as bits: an integer of w bytes is viewed as w / s floats of s bytes, so a
    # label is one more feature column in float32 and float64, and two in bfloat16. A gather copies
    # bits and does no arithmetic, so any bit pattern, NaN included, survives.
    wide = torch.int64 if features_BD.element_size() == 8 else torch.int32
    bits = labels_B.to(wide)[:, None].view(features_BD.dtype)
    whole = group.all_gather(torch.cat((features_BD, bits), dim=1))
    features_nD, bits = whole.split((features_BD.shape[1], bits.shape[1]), dim=1)
    return features_nD.contiguous(), bits.contiguous().view(wide)[:, 0].long()
