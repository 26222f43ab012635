import torch
import torch.nn.functional as F

from raysrec.models.mamba_block import MambaBlock


def test_the_block_is_its_equations() -> None:
    # Position by position and channel by channel, as the paper writes them.
    torch.manual_seed(0)
    block = MambaBlock(dim=4, d_state=3, d_conv=2, expand=2).double()
    x = torch.randn(5, 4, dtype=torch.float64)
    h = torch.zeros(8, 3, dtype=torch.float64)
    a_before = torch.zeros(8, dtype=torch.float64)
    expected = []
    for x_t in x:
        a, g = (block.into.weight @ x_t).split(8)
        u = F.silu(block.conv_weight[:, 0] * a_before + block.conv_weight[:, 1] * a + block.conv_bias)
        r, b, c = (block.select.weight @ u).split([1, 3, 3])
        delta = F.softplus(block.step_size.weight @ r + block.step_size.bias)
        h = torch.exp(-delta[:, None] * block.a_log.exp()) * h + torch.outer(delta * u, b)
        expected.append(block.out.weight @ ((h @ c + block.skip * u) * F.silu(g)))
        a_before = a
    torch.testing.assert_close(block(x[None])[0], torch.stack(expected))


def test_it_has_the_papers_number_of_parameters() -> None:
    block = MambaBlock(dim=64, d_state=32, d_conv=4, expand=2)
    assert sum(parameter.numel() for parameter in block.parameters()) == 38_784


def test_its_memory_is_4480_numbers() -> None:
    state = MambaBlock(dim=64, d_state=32, d_conv=4, expand=2).initial_state(3)
    assert (tuple(state.window.shape), tuple(state.scan.shape)) == ((3, 3, 128), (3, 128, 32))
