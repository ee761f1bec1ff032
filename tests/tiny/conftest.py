"""Tiny models gain nothing from a second thread, and waiting for it costs most of a step."""

import torch

torch.set_num_threads(1)
