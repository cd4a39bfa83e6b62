"fit: what comes out must not depend on micro-batches, processes or interruptions; and it must be the textbook's update."
import json, math, os, random, signal, subprocess, sys, textwrap, warnings
from functools import partial
from pathlib import Path
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn
from tokenlab.lm import LM, LMConfig, LMOutput, sdpa, use_rule
from tokenlab import training
from tokenlab.training import (History, Muon, adamw, block_attention, call_model, fit, lr_factor, mean_loss, micro_batches, muon, next_targets, next_token,
                               orthogonalise, param_groups, shuffled, stepwise)

quiet = dict(progress=False, dtype="float32")


class Rows:
    "Ragged rows of ids below 20, two documents in some."
    def __init__(self, n=12, T=16, seed=0):
        g = torch.Generator().manual_seed(seed)
        self.ids = (torch.arange(T) + torch.randint(0, 20, (n, 1), generator=g)) % 20
        lengths = torch.randint(3, T + 1, (n, 1), generator=g)
        self.ids = self.ids.masked_fill(torch.arange(T) >= lengths, -1)
        self.segments = ((torch.arange(T) >= 5) & (torch.arange(n)[:, None] % 3 == 0)).long().masked_fill(self.ids < 0, -1)
    def __len__(self): return len(self.ids)
    def __getitem__(self, i): return {"ids": self.ids[i], "segments": self.segments[i]}


class Dropped(nn.Module):
    "A model that draws random numbers: an LM whose input is dropped out."
    def __init__(self, p=0.2):
        super().__init__()
        self.lm, self.p = LM(LMConfig(20, dim=16, n_layers=1, n_heads=2), seed=0), p
    def forward(self, ids, segments=None): return self.lm(embeds=F.dropout(self.lm.embed(ids.clamp(min=0)), self.p, self.training), segments=segments)


def tiny(**changes): return LM(LMConfig(**(dict(vocab_size=20, dim=16, n_layers=2, n_heads=2) | changes)), seed=0)
def weights_of(model): return {k: v.clone() for k, v in model.named_parameters()}
def largest(a, b): return max((a[k] - b[k]).abs().max().item() for k in a)
def same(a, b): return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def script(body, *args, timeout=120, processes=None):
    "Run Python code in a process of its own (or several, under torchrun)."
    path = Path(args[0])/"script.py"
    path.write_text(f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\nfrom test_foundations_training import *\ntorch.set_num_threads(1)\n" + textwrap.dedent(body))
    launch = [] if processes is None else ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    return subprocess.run([sys.executable, *launch, str(path), *map(str, args)], capture_output=True, text=True, timeout=timeout, env=os.environ | {"OMP_NUM_THREADS": "1"})


# the update is the textbook's

def test_fit_is_the_plain_loop():
    data, a, b = Rows(), tiny(), tiny()
    fit(a, shuffled(data, 4, seed=3), steps=8, lr=1e-2, warmup=2, min_lr=0., weight_decay=0., clip=None, **quiet)
    opt, take = torch.optim.AdamW(b.parameters(), lr=1e-2, betas=(.9, .95), weight_decay=0.), shuffled(data, 4, seed=3)
    for step in range(8):
        batch = take(step)
        targets = next_targets(batch)
        opt.param_groups[0]["lr"] = 1e-2*lr_factor(step, 8, 2, 0.)
        loss = F.cross_entropy(b(batch["ids"], segments=batch["segments"]).logits.flatten(0, 1), targets.flatten(), ignore_index=-1)
        loss.backward(); opt.step(); opt.zero_grad()
    assert largest(weights_of(a), weights_of(b)) < 2e-5


def test_clip_and_decay():
    a, b = tiny(), tiny()
    start = weights_of(a)
    h = fit(a, shuffled(Rows(), 4), steps=1, lr=0.1, warmup=0, clip=1e-9, weight_decay=0.5, optimizer=partial(adamw, eps=1.), **quiet)
    assert h.grad_norm[0] > 1e-3                                   # recorded before clipping
    torch.testing.assert_close(a.blocks[0].mlp.up_proj.weight, start["blocks.0.mlp.up_proj.weight"]*0.95, atol=1e-8, rtol=1e-5)
    torch.testing.assert_close(a.embed.weight, start["embed.weight"], atol=1e-8, rtol=0)   # embeddings do not decay
    torch.testing.assert_close(a.norm.weight, start["norm.weight"], atol=1e-8, rtol=0)


def test_schedule_ends_at_min_lr():
    h = fit(tiny(), shuffled(Rows(), 4), steps=10, lr=1e-2, min_lr=2e-3, warmup=3, **quiet)
    assert h.lr[2] == 1e-2 == max(h.lr) and h.lr[-1] == pytest.approx(2e-3) and h.lr[0] == pytest.approx(1e-2/3)


def test_groups_override():
    m = tiny()
    groups = param_groups(m, lr=1., groups={"*": {"betas": (.8, .9)}, "blocks.0.*": {"lr": 0.5}, "*norm*": {"weight_decay": 0.3}})
    of = {n: g for g in groups for n in g["names"]}
    assert of["blocks.0.mlp.up_proj.weight"]["lr"] == .5 and of["blocks.1.mlp.up_proj.weight"]["lr"] == 1.
    assert of["blocks.0.norm1.weight"]["weight_decay"] == .3 and of["embed.weight"]["betas"] == (.8, .9)
    assert sum(len(g["params"]) for g in groups) == len(list(m.parameters()))


# the batch defines the step

@pytest.mark.parametrize("accumulate", [2, 3, 6])
@pytest.mark.parametrize("plug", [None, lambda output, batch, loss: loss**2 + output.logits.softmax(-1).amax(-1)])
def test_accumulation_changes_nothing(accumulate, plug):
    one, parts = tiny(), tiny()
    h = fit(one, shuffled(Rows(), 6), steps=6, weights=plug, **quiet)
    k = fit(parts, shuffled(Rows(), 6), steps=6, weights=plug, accumulate=accumulate, **quiet)
    assert largest(weights_of(one), weights_of(parts)) < 1e-5
    assert h.loss == pytest.approx(k.loss, abs=1e-5) and h.tokens == k.tokens and h.grad_norm == pytest.approx(k.grad_norm, rel=1e-4)


class Expert(nn.Module):
    "An LM with a bias that only rows starting with an even id use: some processes have no gradient for it."
    def __init__(self):
        super().__init__()
        self.lm, self.bias, self.never = tiny(), nn.Parameter(torch.zeros(20)), nn.Parameter(torch.ones(3))
    def forward(self, ids, segments=None):
        out = self.lm(ids, segments=segments)
        even = ids[:, 0] % 2 == 0
        if even.any(): out.logits = out.logits + even[:, None, None]*self.bias
        out.losses = {"balance": out.logits.square().mean(dim=(1, 2)).mean()*0}
        return out


class Sorted(Rows):
    "Rows of even first id come first, so that they all fall to the first process."
    def __getitem__(self, i):
        order = sorted(i, key=lambda j: int(self.ids[j][0]) % 2)
        return super().__getitem__(order)


def train_expert(**options):
    model = Expert()
    h = fit(model, shuffled(Sorted(), 8, seed=5), steps=5, lr=1e-2, groups={"never": {"weight_decay": 0.5}}, **quiet, **options)
    return model, h


def test_two_processes_equal_one(tmp_path):
    one, history = train_expert()
    done = script("""
        from safetensors.torch import save_file
        model, h = train_expert(checkpoint=sys.argv[1] + "/ck", accumulate=2)
        import torch.distributed as dist
        save_file({k: v.detach().contiguous() for k, v in model.named_parameters()}, f"{sys.argv[1]}/rank{dist.get_rank()}.safetensors")
        if dist.get_rank() == 0: print(json.dumps(vars(h)))
    """, tmp_path, processes=2)
    assert done.returncode == 0, done.stderr[-3000:]
    r0, r1 = (load_file(tmp_path/f"rank{i}.safetensors") for i in (0, 1))
    assert same(r0, r1)
    assert largest(weights_of(one), r0) < 1e-5
    assert torch.equal(r0["never"], torch.ones(3))                  # without a gradient anywhere: left alone
    two = json.loads(done.stdout.splitlines()[-1])
    assert two["loss"] == pytest.approx(history.loss, abs=1e-5) and two["tokens"] == history.tokens
    assert [p.name for p in training.saved_steps(tmp_path/"ck")] == ["step-00000005", "step-00000004"]


# interrupted runs

def noisy(batch, rng):
    "Replace a fifth of the inputs by random ids."
    hit = torch.rand(batch["ids"].shape, generator=rng) < 0.2
    return batch | {"inputs": torch.where(hit & (batch["ids"] >= 0), torch.randint(0, 20, batch["ids"].shape, generator=rng), batch["ids"])}


def train_dropped(folder, optimizer="adamw", on_step=None):
    model = Dropped()
    h = fit(model, shuffled(Rows(), 4, seed=1), steps=20, corrupt=noisy, optimizer=getattr(training, optimizer), checkpoint=folder, save_every=3,
            on_step=on_step, progress=False)
    return model, h


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_killed_and_resumed_run_is_bit_identical(tmp_path, optimizer):
    whole, history = train_dropped(None, optimizer)
    step = random.Random(optimizer).randrange(4, 19)
    body = "train_dropped(sys.argv[1], sys.argv[2], lambda h: len(h) == int(sys.argv[3]) and os.kill(os.getpid(), signal.SIGKILL))"
    killed = script(body, tmp_path, optimizer, step)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert training.newest(tmp_path)[1]["step"] == step//3*3
    resumed, again = train_dropped(tmp_path, optimizer)
    assert same(weights_of(whole), weights_of(resumed))
    assert again.loss == history.loss and len(again.seconds) == 20


def test_killed_while_writing_a_checkpoint(tmp_path):
    whole, _ = train_dropped(None)
    killed = script("""
        import safetensors.torch as st
        real, count = st.save_file, [0]
        def save_file(tensors, path):
            count[0] += 1
            if count[0] == 6: Path(path).write_bytes(b"half"); os.kill(os.getpid(), signal.SIGKILL)
            real(tensors, path)
        st.save_file = save_file
        train_dropped(sys.argv[1])
    """, tmp_path)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert [p.name[:4] for p in sorted(tmp_path.iterdir()) if p.is_dir()] == ["step", "step", "tmp-"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        resumed, _ = train_dropped(tmp_path)
    assert same(weights_of(whole), weights_of(resumed))
    assert not list(tmp_path.glob("tmp-*"))


@pytest.mark.parametrize("damage", ["flip", "truncate", "lose", "json"])
def test_damaged_checkpoint_is_named_and_skipped(tmp_path, damage):
    whole, _ = train_dropped(tmp_path)
    last = training.saved_steps(tmp_path)[0]
    target = last/"optimizer.safetensors"
    if damage == "flip": raw = bytearray(target.read_bytes()); raw[-1] ^= 1; target.write_bytes(raw)
    if damage == "truncate": target.write_bytes(target.read_bytes()[:100])
    if damage == "lose": target.unlink()
    if damage == "json": (last/"state.json").write_text('{"step": 20')
    with pytest.warns(UserWarning, match="step-00000020 is skipped"): resumed, h = train_dropped(tmp_path)
    assert same(weights_of(whole), weights_of(resumed)) and len(h) == 20


def test_finished_run_comes_back_at_once(tmp_path):
    whole, _ = train_dropped(tmp_path)
    steps = []
    again, h = train_dropped(tmp_path, on_step=steps.append)
    assert same(weights_of(whole), weights_of(again)) and len(h) == 20 and not steps


def test_resume_refuses_other_settings(tmp_path):
    go = lambda model, **k: fit(model, shuffled(Rows(), 4), checkpoint=tmp_path, **(dict(steps=4, lr=1e-3) | quiet | k))
    go(tiny())
    with pytest.raises(ValueError, match=r"(?s)lr: 0.001 in the checkpoint, 0.002 now.*steps: 4 in the checkpoint, 5 now"): go(tiny(), steps=5, lr=2e-3)
    with pytest.raises(ValueError, match=r"parameter blocks.0.norm1.weight: \[16\] in the checkpoint, \[32\] now"): go(tiny(dim=32))
    with pytest.raises(ValueError, match="optimizer"): go(tiny(), optimizer=muon)
    with pytest.raises(ValueError, match="resume=False"): go(tiny(), resume=False)


@pytest.mark.parametrize("other,said", [
    (shuffled(Rows(), 6), r"first batch, shapes: {'ids': \[4, 16\], 'segments': \[4, 16\]} in the checkpoint, {'ids': \[6, 16\], 'segments': \[6, 16\]} now"),
    (shuffled(Rows(seed=1), 4), "first batch, hash: "), (shuffled(Rows(), 4, seed=1), "first batch, hash: "),
])
def test_resume_refuses_other_data(tmp_path, other, said):
    go = lambda batches, **k: fit(tiny(), batches, steps=4, checkpoint=tmp_path, **quiet, **k)
    go(shuffled(Rows(), 4))
    with pytest.raises(ValueError, match=said): go(other)
    assert len(go(shuffled(Rows(), 4), accumulate=2)) == 4          # the same batch in parts is the same run


def test_checkpoint_without_a_record_of_the_first_batch(tmp_path):
    "One written before the record existed goes on, and what it writes next has it."
    class Stop(Exception): pass
    def stop(h):
        if len(h) == 2: raise Stop
    go = lambda batches, **k: fit(tiny(), batches, steps=4, save_every=2, checkpoint=tmp_path, **quiet, **k)
    with pytest.raises(Stop): go(shuffled(Rows(), 4), on_step=stop)
    path = training.saved_steps(tmp_path)[0]/"state.json"
    state = json.loads(path.read_text())
    state["settings"] = {k: v for k, v in state["settings"].items() if not k.startswith("first batch")}
    path.write_text(json.dumps(state))
    assert len(go(shuffled(Rows(), 4))) == 4
    assert json.loads((training.saved_steps(tmp_path)[0]/"state.json").read_text())["settings"]["first batch, shapes"]["ids"] == [4, 16]


def test_first_batch_of_a_generator_is_still_trained_on(tmp_path):
    data = [Rows(seed=i)[list(range(4))] for i in range(3)]
    a, b = (fit(tiny(), iter(data), steps=3, checkpoint=folder, **quiet) for folder in (None, tmp_path))
    assert a.loss == b.loss


def test_checkpoint_is_plain_data(tmp_path):
    fit(tiny(tied=True), shuffled(Rows(), 4), steps=9, checkpoint=tmp_path, save_every=2, keep=3, **quiet)
    assert [p.name for p in training.saved_steps(tmp_path)] == ["step-00000009", "step-00000008", "step-00000006"]
    assert {p.name for p in training.saved_steps(tmp_path)[0].iterdir()} == {"model.safetensors", "optimizer.safetensors", "state.json"}


def test_resume_from_an_iterable(tmp_path):
    data = [Rows(seed=i)[list(range(4))] for i in range(3)]
    whole, other = tiny(), tiny()
    fit(whole, data, steps=7, **quiet)
    def stop(h):
        if len(h) == 5: raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): fit(other, data, steps=7, checkpoint=tmp_path, save_every=2, on_step=stop, **quiet)
    other = tiny()
    fit(other, iter(data*3), steps=7, checkpoint=tmp_path, save_every=2, **quiet)
    assert same(weights_of(whole), weights_of(other))


# plugs

def test_segments_are_passed_only_where_needed():
    seen = []
    class Spy(nn.Module):
        def __init__(self): super().__init__(); self.lm = tiny()
        def forward(self, ids, **k): seen.append(sorted(k)); return self.lm(ids, **k)
    ids = torch.arange(8).view(2, 4)
    for segments in ([[0, 0, 0, 0], [3, 3, 3, 3]], [[0, 0, 1, 1], [0, 0, 0, 0]]): call_model(Spy(), {"ids": ids, "segments": torch.tensor(segments)})
    padded = {"ids": torch.tensor([[1, 2, -1, -1]]), "segments": torch.tensor([[0, 0, -1, -1]])}
    call_model(Spy(), padded)
    assert seen == [[], ["segments"], []]


def test_token_weights_choose_tokens():
    first = lambda output, batch, loss: (torch.arange(16) < 4).float().expand_as(loss)*3
    a, b = tiny(), tiny()
    cut = lambda batch, rng: batch | {"targets": next_targets(batch).masked_fill(torch.arange(16) >= 4, -1)}
    ha, hb = (fit(m, shuffled(Rows(), 6), steps=4, **quiet, **k) for m, k in ((a, {"weights": first}), (b, {"corrupt": cut})))
    assert ha.loss == pytest.approx(hb.loss, abs=1e-6) and largest(weights_of(a), weights_of(b)) < 1e-5


def test_corruption_sets_inputs_and_targets():
    "A masked model: half of the inputs hidden behind id 0, predicted at their own place."
    def mask(batch, rng):
        hit = (torch.rand(batch["ids"].shape, generator=rng) < .5) & (batch["ids"] >= 0)
        return batch | {"inputs": torch.where(hit, 0, batch["ids"]), "targets": torch.where(hit, batch["ids"], -1)}
    seen = {}
    def spy(output, batch): seen.update(batch); return next_token(output, batch)
    fit(tiny(), shuffled(Rows(), 6), steps=1, corrupt=mask, loss=spy, **quiet)
    hit = seen["targets"] >= 0
    assert hit.any() and (seen["inputs"][hit] == 0).all() and torch.equal(seen["targets"][hit], seen["ids"][hit])


@pytest.mark.parametrize("kind", ["row", "scalar"])
def test_row_and_scalar_losses(kind):
    def per_row(output, batch): return next_token(output, batch).sum(1)/(batch["targets"] >= 0).sum(1).clamp(min=1)
    loss = per_row if kind == "row" else lambda output, batch: per_row(output, batch).mean()
    a, b = tiny(), tiny()
    ha, hb = fit(a, shuffled(Rows(), 6), steps=3, loss=loss, **quiet), fit(b, shuffled(Rows(), 6), steps=3, loss=loss, accumulate=3, **quiet)
    assert ha.loss == pytest.approx(hb.loss, abs=1e-5) and largest(weights_of(a), weights_of(b)) < 1e-5


def test_losses_of_the_model_are_added():
    class Extra(nn.Module):
        def __init__(self): super().__init__(); self.lm, self.x = tiny(), nn.Parameter(torch.tensor(3.))
        def forward(self, ids, segments=None): out = self.lm(ids, segments=segments); out.losses = {"square": self.x**2}; return out
    m = Extra()
    h = fit(m, shuffled(Rows(), 6), steps=2, lr=.5, warmup=0, accumulate=3, clip=None, optimizer=lambda groups: torch.optim.SGD([{**g, "weight_decay": 0.} for g in groups]), groups={"lm.*": {"lr": 0.}}, min_lr=.5, **quiet)
    assert h.parts["square"] == pytest.approx([9., 0.]) and m.x.item() == pytest.approx(0.)   # x - 0.5 * 2x


# data

@pytest.mark.parametrize("n,batch_size", [(5, 2), (7, 7), (4, 6), (1, 3), (30, 8)])
def test_every_block_once_an_epoch(n, batch_size):
    class Blocks:
        def __len__(self): return n
        def __getitem__(self, i): return {"ids": torch.tensor(i)[:, None]}
    take = shuffled(Blocks(), batch_size, seed=2)
    steps = math.lcm(n, batch_size)//batch_size*2
    seen = torch.cat([take(i)["ids"] for i in range(steps)]).flatten()
    for epoch in seen.view(-1, n): assert sorted(epoch.tolist()) == list(range(n))
    assert torch.equal(take(1)["ids"], shuffled(Blocks(), batch_size, seed=2)(1)["ids"])
    if n == 30: assert not torch.equal(take(1)["ids"], shuffled(Blocks(), batch_size, seed=3)(1)["ids"])


def test_targets_respect_documents():
    batch = {"ids": torch.tensor([[1, 2, 3, 4], [5, 6, -1, -1]]), "segments": torch.tensor([[0, 0, 1, 1], [0, 0, -1, -1]])}
    assert next_targets(batch).tolist() == [[2, -1, 4, -1], [6, -1, -1, -1]]


# attention for training on a CPU

@pytest.mark.parametrize("T", [64, 100, 256])
@pytest.mark.parametrize("kind", ["causal", "packed", "tree", "grouped", "cached"])
def test_block_attention_is_sdpa(T, kind):
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 4, T, 8, generator=g, requires_grad=True) for _ in range(3))
    mask = None
    if kind == "packed":
        at = (torch.arange(T) > T//3).long() + torch.stack([torch.zeros(T), torch.arange(T) > T - 9]).long()
        mask = ((at[:, None] == at[..., None]) & torch.ones(T, T, dtype=torch.bool).tril())[:, None]
    if kind == "tree": mask = torch.rand(T, T, generator=g) < .5; mask |= torch.eye(T, dtype=torch.bool)
    if kind == "grouped": k, v = (x[:, :2].detach().requires_grad_() for x in (k, v))
    if kind == "cached": q = q[:, :, -7:].detach().requires_grad_()
    out = [rule(q, k, v, mask=mask) for rule in (block_attention, sdpa)]
    torch.testing.assert_close(*out)
    grads = [torch.autograd.grad(o.square().sum(), (q, k, v)) for o in out]
    for a, b in zip(*grads): torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_block_attention_trains_an_lm():
    data, a, b = Rows(n=4, T=128), tiny(), tiny()
    ha = fit(a, shuffled(data, 4), steps=4, **quiet)
    with use_rule(b, block_attention): hb = fit(b, shuffled(data, 4), steps=4, **quiet)
    assert ha.loss == pytest.approx(hb.loss, abs=1e-5)


# the optimiser

@pytest.mark.parametrize("shape", [(8, 8), (16, 5), (5, 16), (3, 7, 4)])
def test_orthogonalise_is_the_polar_factor(shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    U, S, Vh = torch.linalg.svd(x, full_matrices=False)
    torch.testing.assert_close(orthogonalise(x, polish=5, dtype=torch.float64), U @ Vh, atol=1e-8, rtol=0)
    quick = U.mT @ orthogonalise(x.float()).double() @ Vh.mT       # same singular vectors: diagonal, and near 1
    diagonal = quick.diagonal(dim1=-2, dim2=-1)
    assert (quick - torch.diag_embed(diagonal)).abs().max() < 1e-4 and 0.6 < diagonal.min() and diagonal.max() < 1.25


def test_muon_moves_matrices_by_their_polar_factor():
    m = nn.Sequential(nn.Linear(8, 32, bias=False))
    w = m[0].weight
    start, w.grad = w.detach().clone(), torch.randn(32, 8, generator=torch.Generator().manual_seed(0))
    Muon([{"params": [w], "kind": "matrix"}], lr=1e-2, weight_decay=0.5).step()
    U, _, Vh = torch.linalg.svd(w.grad, full_matrices=False)
    moved = (start*(1 - 5e-3) - w)/(1e-2*0.2*32**0.5)
    cosine = F.cosine_similarity(moved.flatten(), (U @ Vh).flatten(), dim=0)
    assert cosine > 0.98 and 0.6 < torch.linalg.svdvals(moved).min() and torch.linalg.svdvals(moved).max() < 1.3


def test_muon_is_adamw_on_the_rest():
    a, b = nn.Embedding(7, 3), nn.Embedding(7, 3)
    b.load_state_dict(a.state_dict())
    ours, theirs = muon(param_groups(a, weight_decay=.1)), torch.optim.AdamW(b.parameters(), lr=3e-3, betas=(.9, .95), weight_decay=0.)
    for i in range(5):
        for m, opt in ((a, ours), (b, theirs)): m.weight.grad = torch.randn(7, 3, generator=torch.Generator().manual_seed(i)); opt.step()
    torch.testing.assert_close(a.weight, b.weight, atol=1e-7, rtol=1e-6)


# measuring and showing

def test_validation_is_exact_and_changes_nothing():
    data, a, b = Rows(), Dropped(), Dropped()
    h = fit(a, shuffled(data, 4), steps=6, valid=data, valid_every=2, **quiet)
    fit(b, shuffled(data, 4), steps=6, **quiet)
    assert same(weights_of(a), weights_of(b)) and list(h.valid) == [2, 4, 6] and a.training
    a.eval()
    batch = data[list(range(12))]
    targets = next_targets(batch)
    expected = F.cross_entropy(a(batch["ids"], segments=batch["segments"]).logits.flatten(0, 1), targets.flatten(), ignore_index=-1)
    assert h.valid[6] == pytest.approx(expected.item(), abs=1e-6)
    assert mean_loss(a, data, batch_size=5, dtype=None) == pytest.approx(mean_loss(a, batch, batch_size=12, dtype=None), abs=1e-6)
    assert fit(tiny(), shuffled(data, 4), steps=2, valid=lambda m: 7, **quiet).valid == {1: 7., 2: 7.}


def test_history_and_quiet(capfd):
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    h = fit(tiny(), shuffled(Rows(), 4), steps=3, valid=Rows(), valid_every=3)
    assert torch.equal(torch.rand(1), expected)                     # the caller's random numbers are as they were
    frame = h.frame()
    assert list(frame.index) == [1, 2, 3] and frame.valid.notna().sum() == 1 and list(frame.columns[:2]) == ["loss", "lr"]
    assert h.tokens_per_second > 0 and "3 steps" in repr(h) and repr(History()) == "History(0 steps)"
    assert capfd.readouterr() == ("", "")                           # no terminal, no notebook: not a word
    ax = h.plot()
    assert ax.get_xlabel() == "step" and len(ax.lines) == 3


def test_live_plot_replaces_itself(monkeypatch):
    import IPython.display
    shown = []
    class Handle:
        def update(self, fig): shown.append("update")
    monkeypatch.setattr(IPython.display, "display", lambda fig, display_id: shown.append("new") or Handle())
    fit(tiny(), shuffled(Rows(), 4), steps=3, plot=True, **quiet)
    assert shown == ["new", "update"]


def test_compile_falls_back(monkeypatch):
    def no_compiler(model):
        def call(*a, **k): raise RuntimeError("no C++ compiler")
        return call
    monkeypatch.setattr(torch, "compile", no_compiler)
    a, b = tiny(), tiny()
    with pytest.warns(UserWarning, match="without it") as found: fit(a, shuffled(Rows(), 4), steps=3, compile=True, **quiet)
    assert len([w for w in found if "torch.compile" in str(w.message)]) == 1
    fit(b, shuffled(Rows(), 4), steps=3, **quiet)
    assert same(weights_of(a), weights_of(b))


# errors

@pytest.mark.parametrize("change,message", [
    (dict(steps=0), "steps=0"), (dict(steps=3, warmup=4), "warmup=4 of 3"), (dict(steps=3, accumulate=0), "accumulate=0"), (dict(steps=3, lr=-1.), "lr=-1"),
    (dict(steps=3, keep=0), "keep=0"), (dict(steps=3, valid_every=0), "valid_every=0"), (dict(steps=3, save_every=-1), "save_every=-1"), (dict(steps=3, min_lr=1.), "min_lr=1"),
    (dict(steps=3, accumulate=5), "cannot be cut into 5"), (dict(steps=3, dtype="float8"), "float8"),
    (dict(steps=2.5), "steps=2.5: give a whole number"), (dict(steps="9"), "steps='9'"), (dict(steps=True), "steps=True"), (dict(steps=3, save_every=1.5), "save_every=1.5"),
    (dict(steps=3, warmup=.5), "warmup=0.5"), (dict(steps=3, clip=0), "clip=0: give a positive"), (dict(steps=3, clip=-1.), "clip=-1"), (dict(steps=3, clip=math.nan), "clip=nan"),
    (dict(steps=3, weight_decay=-.1), "^weight_decay=-0.1: give a number of 0"), (dict(steps=3, weight_decay=math.inf), "weight_decay=inf"),
    (dict(steps=3, groups={"*norm*": {"lr": -1e-3}}), r"groups\['\*norm\*'\]: lr=-0.001"), (dict(steps=3, groups={"*": {"weight_decay": -1}}), "weight_decay=-1"),
    (dict(steps=3, groups={"*": 1e-3}), "give a dict of options"),
    (dict(steps=3, groups={"encoder.*": {"lr": 1.}}), "encoder"), (dict(steps=3, groups={"*": {"weight_decy": 1.}}), "no option"),
    (dict(steps=3, weights=lambda o, b, l: l[:, :2]), "same shape"), (dict(steps=3, weights=lambda o, b, l: l*0), "nothing to predict"),
    (dict(steps=3, loss=lambda o, b: o.logits), "give \\(B, T\\)"),
])
def test_bad_settings(change, message):
    with pytest.raises(ValueError, match=message): fit(tiny(), shuffled(Rows(), 4), **(quiet | change))


@pytest.mark.parametrize("batches,message", [
    ([{"ids": torch.tensor([[1, 20]])}], "step 0: ids holds the id 20, the model's vocabulary has 20"), ([{"ids": torch.zeros(0, 4).long()}], "empty"),
    ([{"ids": torch.tensor([[1, -2]])}], "holds -2"), ([{"text": "x"}], "dict with `ids`"), ([{"ids": torch.ones(1, 2)}], "integer"), ([], "ended after 0"),
    (iter([{"ids": torch.tensor([[1, 2]])}]), "ended after 1"), (5, "shuffled"), ([{"ids": torch.tensor([[1], [2]])}], "nothing to predict"),
])
def test_bad_batches(batches, message):
    with pytest.raises(ValueError, match=message): fit(tiny(), batches, steps=3, **quiet)


def test_empty_blocks():
    with pytest.raises(ValueError, match="empty"): shuffled([], 4)
    with pytest.raises(ValueError, match="batch_size=0"): shuffled(Rows(), 0)


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_not_finite(where):
    "The error names the step and a remedy; the weights are those before it."
    def broken(output, batch):
        loss = next_token(output, batch)
        if broken.calls == 2: loss = loss*math.nan if where == "loss" else loss + (output.logits*0).sum(-1).sqrt()
        broken.calls += 1
        return loss
    broken.calls, kept = 0, {}
    m = tiny()
    with pytest.raises(FloatingPointError, match=f"step 2: .*{where}.*Lower lr"): fit(m, shuffled(Rows(), 4), steps=5, loss=broken, on_step=lambda h: kept.update(weights_of(m)), **quiet)
    assert same(kept, weights_of(m))
