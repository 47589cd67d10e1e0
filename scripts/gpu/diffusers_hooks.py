"""diffusers' own caches on models whose blocks take no time: for rivals.py."""

import diffusers
import torch
from diffusers.hooks import FirstBlockCacheConfig, TaylorSeerCacheConfig
from diffusers.hooks._helpers import TransformerBlockMetadata, TransformerBlockRegistry

VERSION = diffusers.__version__


class Block(torch.nn.Module):
    """Puts out its tensors in turn."""

    def __init__(self, outputs):
        super().__init__()
        self.outputs, self.calls = outputs, 0

    def forward(self, hidden_states):
        self.calls += 1
        return self.outputs[self.calls % 2]


class Model(torch.nn.Module, diffusers.CacheMixin):
    def __init__(self, tensors):
        super().__init__()
        self.transformer_blocks = torch.nn.ModuleList([Block(tensors.fronts), Block(tensors.outs)])

    def forward(self, hidden_states):
        for block in self.transformer_blocks:
            hidden_states = block(hidden_states)
        return hidden_states


class LayerModel(torch.nn.Module, diffusers.CacheMixin):
    def __init__(self, tensors):
        super().__init__()
        self.attn = Block(tensors.outs)

    def forward(self, hidden_states):
        return self.attn(hidden_states)


TransformerBlockRegistry.register(
    Block, TransformerBlockMetadata(return_hidden_states_index=0, return_encoder_hidden_states_index=None)
)


def hooked(model, config, tensors):
    """A function that makes a pass."""
    model.enable_cache(config)

    def one_pass(step):
        with model.cache_context("cond"):
            model(tensors.x)

    return one_pass


def first_block_cache(tensors, threshold):
    return hooked(Model(tensors), FirstBlockCacheConfig(threshold), tensors)


def taylorseer(tensors):
    """Every second pass is computed."""
    config = TaylorSeerCacheConfig(cache_interval=2, disable_cache_before_step=2, cache_identifiers=["attn"])
    return hooked(LayerModel(tensors), config, tensors)
