import torch
from torch import nn
from torch._subclasses import FakeTensorMode

from dasvit.engine.memory import LiveBytes, peak_live_bytes, saved_bytes, tensors_of

KB = 1024


def block():
    return torch.zeros(KB // 4)


def test_live_bytes_follow_tensors_from_creation_to_release():
    held = block()
    with LiveBytes([held]) as count:
        assert count.now == KB
        a, b = block(), block()
        view = a.view(2, -1)[0]
        assert count.now == 3 * KB  # a view has no bytes of its own
        del a
        assert count.now == 3 * KB
        del view
        assert (count.now, count.peak) == (2 * KB, 3 * KB)
        count.peak = count.now
        block()
        assert count.peak == 3 * KB
        del b
    del held
    assert count.now == 0


def test_what_autograd_holds_is_alive():
    x = block().requires_grad_()
    with LiveBytes([x]) as count:
        y = (x.exp().exp()).sum()
        assert count.now == 3 * KB + 4  # both exponentials, kept for the backward pass, and the sum
        y.backward()
        assert count.now == 2 * KB + 4  # the gradient


def test_peak_of_a_training_step_by_hand():
    model = nn.Linear(32, 8, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x = torch.randn(64, 32)

    def step():
        model(x).sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    weight, output, loss = 4 * 32 * 8, 4 * 64 * 8, 4
    # the output is released before there is a gradient: the sum does not need it
    assert peak_live_bytes(step, model, optimizer) == weight + output + loss


def test_tensors_of_an_optimiser_are_its_state():
    model = nn.Linear(4, 4)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    assert len(tensors_of(model, optimizer)) == 2 + 6


def test_fake_tensors_count_like_real_ones():
    def step():
        layer = nn.Sequential(nn.Linear(16, 16), nn.GELU(), nn.Linear(16, 4))
        layer(torch.randn(8, 16)).square().sum().backward()

    real = peak_live_bytes(step)
    with FakeTensorMode():
        assert peak_live_bytes(step) == real > 0


def test_saved_bytes_count_each_storage_once_and_no_parameter():
    x, layer = torch.randn(8, 16), nn.Linear(16, 16)
    assert saved_bytes(lambda: layer(x)) == 8 * 16 * 4
    assert saved_bytes(lambda: layer(x) + nn.functional.linear(x, layer.weight.T)) == 8 * 16 * 4
    assert saved_bytes(lambda: layer(x).exp()) == 2 * 8 * 16 * 4


def test_saved_bytes_do_not_take_a_storage_for_one_that_was_there_before():
    x = torch.randn(KB // 4, requires_grad=True)

    def step():
        for _ in range(8):
            x.exp()  # saved, and let go
        return [x.exp().exp() for _ in range(8)]

    assert saved_bytes(step) == 16 * KB
