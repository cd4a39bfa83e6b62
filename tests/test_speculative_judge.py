"Judge decoding: at its ends it is the standard rule or no rule; the head equals scikit-learn's; labels are what they say."
import pytest, torch
from torch import nn
from tokenlab.generate import Sampler, generate
from tokenlab.speculative.judge import JudgeAcceptance, JudgeHead, as_ids, add_up, fit_judge, mine_labels, pad, ranking, write_problem
from tokenlab.speculative.speculate import Draft, ModelDrafter, Step, accept_greedy, accept_sampling, speculate
from test_speculative_speculate import noisy, small_lm


class Says(nn.Module):
    "A judge whose hidden state is its opinion."
    def forward(self, hidden): return hidden[:, 0]


@pytest.mark.parametrize("sampler", [Sampler(temperature=0), Sampler(temperature=.8)])
@pytest.mark.parametrize("branching", [(1, 1, 1), (3, 2, 1)])
def test_a_threshold_of_one_is_the_standard_rule(sampler, branching):
    target = small_lm()
    args = dict(drafter=ModelDrafter(noisy(target, .3), branching=branching), max_new_tokens=20, sampler=sampler, seed=3)
    head = JudgeHead(32)
    plain = speculate(target, [[1, 2], [3]], **args)
    for judge in (JudgeAcceptance(head, 1.), JudgeAcceptance(lambda h: torch.zeros(len(h)), .5)):
        assert [g.ids for g in speculate(target, [[1, 2], [3]], accept=judge, **args)] == [g.ids for g in plain]


def test_below_zero_every_draft_is_kept():
    target = small_lm()
    done = speculate(target, [1, 2], drafter=ModelDrafter(small_lm(1), 4), accept=JudgeAcceptance(JudgeHead(32), -1.), max_new_tokens=20)
    assert done.accepted == [5]*4
    assert done.ids[:4] == generate(small_lm(1), [1, 2], max_new_tokens=4).ids


def test_or_of_two_masks_on_chains():
    rng, said = torch.Generator().manual_seed(0), 0
    for _ in range(300):
        logits, tokens, liked = torch.randn(7, 3, generator=rng), torch.randint(3, (6,), generator=rng), torch.rand(6, generator=rng) < .5
        kept = [bool(liked[i]) or int(logits[i].argmax()) == int(tokens[i]) for i in range(6)] + [False]
        n = kept.index(False)
        step = Step(Draft(tokens), logits, torch.cat([torch.zeros(1), liked.float()])[:, None], None, [0])
        assert JudgeAcceptance(Says())(step, Sampler(temperature=0), None) == (list(range(n)), int(logits[n].argmax()))
        said += n > len(accept_greedy(step)[0])
    assert said > 50                                       # the judge did decide


def test_a_judge_reads_the_state_at_the_token_itself():
    "Only node 0's own state is liked; the root's state must not count."
    logits = torch.tensor([[0., 1., 0.]]*3)
    for at, want in ((0, []), (1, [0]), (2, [])):
        hidden = torch.zeros(3, 1); hidden[at] = 1
        assert JudgeAcceptance(Says())(Step(Draft([2, 0]), logits, hidden, None, [0]), Sampler(temperature=0), None)[0] == want


def test_trees_go_on_below_a_judged_node():
    d = Draft([5, 7, 2, 9, 2], parents=[-1, -1, 0, 0, 1])
    logits = torch.zeros(6, 10)
    logits[0, 1], logits[2, 2], logits[5, 4] = 1, 1, 1                       # the target says 1 at the root, 2 after node 1, 4 after node 4
    hidden = torch.tensor([0., 0, 1, 0, 0, 0])[:, None]                      # the judge likes node 1
    assert JudgeAcceptance(Says())(Step(d, logits, hidden, None, [0]), Sampler(temperature=0), None) == ([1, 4], 4)


def test_black_boxes_and_bad_labels_are_refused():
    with pytest.raises(ValueError, match="hidden states"): JudgeAcceptance(JudgeHead(4))(Step(Draft([1]), torch.zeros(2, 3), None, None, [0]), Sampler(), None)
    with pytest.raises(ValueError, match="same"): fit_judge(torch.randn(5, 2), torch.zeros(5, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"\(N, D\)"): fit_judge(torch.randn(5, 2), torch.zeros(4, dtype=torch.bool))


@pytest.mark.parametrize("l2", [.1, 10.])
def test_head_equals_scikit_learn(l2):
    from sklearn.linear_model import LogisticRegression
    rng = torch.Generator().manual_seed(1)
    x = torch.randn(300, 4, generator=rng)*torch.tensor([1., 3., .2, 1.]) - 1
    right = x[:, 0] + torch.randn(300, generator=rng) > -2
    z = ((x - x.mean(0))/x.std(0, correction=0)).double().numpy()
    peer = LogisticRegression(C=1/l2, class_weight="balanced", tol=1e-10, max_iter=5000).fit(z, right.numpy())
    torch.testing.assert_close(fit_judge(x, right, l2=l2)(x), torch.tensor(peer.predict_proba(z)[:, 1]).float(), atol=1e-3, rtol=0)


def test_problems_are_right():
    rng = torch.Generator().manual_seed(0)
    for habit in (0., .5, 1.):
        for _ in range(50):
            prompt, words, answer = write_problem(rng, habit)
            assert add_up([int(w) for w in prompt[:-1:2]], prompt[1:-1:2]) == answer == int(words[-2]) and len(as_ids(prompt + words)) == 24


def test_mined_labels_by_a_slow_loop():
    "One problem at a time, as AutoJudge does it; the 'answer' is the parity of the last token."
    target = small_lm(max_len=40)
    draft, prompts, n = noisy(target, .4), [[1, 2, 3], [4, 5, 6], [7, 8, 9]], 8
    is_right = lambda i, ids: ids[n - 1] % 2 == generate(target, prompts[i], max_new_tokens=n).ids[n - 1] % 2
    hidden, right = mine_labels(target, draft, prompts, is_right, max_new_tokens=n)
    want = []
    for i, p in enumerate(prompts):
        text, j = generate(target, p, max_new_tokens=n).ids, 0
        while j < len(text):
            guess = int(draft(torch.tensor([p + text[:j]])).logits[0, -1].argmax())
            if guess != text[j]:
                other = text[:j] + [guess]
                full = other + generate(target, p + other, max_new_tokens=n).ids
                ok = is_right(i, full)
                want.append((ok, target(torch.tensor([p + other])).hidden[0, -1]))
                if ok: text = full
            j += 1
    assert sorted(right.tolist()) == sorted(ok for ok, _ in want) and len(want) > 3
    for ok, h in want: assert any(r == ok and torch.allclose(h, x, atol=1e-4) for x, r in zip(hidden, right.tolist()))


def test_no_labels_is_an_error():
    with pytest.raises(ValueError, match="solves none"): mine_labels(small_lm(), small_lm(1), [[1, 2]], lambda i, ids: False, max_new_tokens=3)


def test_ranking():
    assert ranking(torch.tensor([.9, .8, .1]), torch.tensor([True, True, False])) == 1
    assert ranking(torch.tensor([.5, .5]), torch.tensor([True, False])) == .5
