"""The VLM against independent sums: projector, frames, prompts, states, what is written."""

import pytest
import torch

from presets import GENERATE, PRESETS
from vlm import DownsampleProjector, chat

TINY = PRESETS["tiny"]
SEEN = [0, (TINY.frames - 1) // 2, TINY.frames - 1]      # the K frames
SHORT, LONG = "wait", "a hard frost came overnight and the whole place is different now"


# ---------------------------------------------------------------------------------------------- see

@pytest.mark.parametrize("side", [4, 27])                # 27: VILA's, padded to 28
@pytest.mark.parametrize("by_column", [False, True])     # ours; theirs
def test_a_token_is_two_by_two_patches(side, by_column):
    """In reading order, or down the columns, which is VILA's; zeros outside."""
    torch.manual_seed(0)
    d, half = 3, (side + 1) // 2
    projector = DownsampleProjector(d, 7, by_column)
    patches = torch.randn(2, side * side, d)
    tokens = projector(patches)
    assert tokens.shape == (2, half * half, 7)
    padded = torch.zeros(2, 2 * half, 2 * half, d)
    padded[:, :side, :side] = patches.view(2, side, side, d)
    for row in range(half):
        for column in range(half):
            four = [padded[:, 2 * row + i, 2 * column + j] for i in (0, 1) for j in (0, 1)]
            k = half * column + row if by_column else half * row + column
            assert torch.allclose(tokens[:, k], projector.layers(torch.cat(four, -1)), atol=1e-5)
    assert PRESETS["wan1.3b"].patches_by_column and not TINY.patches_by_column


@pytest.mark.parametrize("frames, of, want", [
    (3, 9, [0, 4, 8]), (3, 2, [0, 1]), (3, 1, [0]), (8, 17, [0, 2, 5, 7, 9, 11, 14, 16]),
    (1, 9, [0])])
def test_picked_frames(tiny, monkeypatch, frames, of, want):
    monkeypatch.setattr(tiny.vlm, "frames", frames)
    clip = torch.arange(of).float().view(1, of, 1, 1, 1)
    assert tiny.vlm.pick(clip).flatten().tolist() == want


# ------------------------------------------------------------------------------------ join and read

def test_join_pads_on_the_left(tiny):
    width = TINY.llama["hidden_size"]
    rows = [[torch.ones(2, width)], [torch.ones(3, width), SHORT]]
    embeddings, mask = tiny.vlm.join(rows)
    words = tiny.vlm.words(SHORT)
    n = 3 + len(words)
    assert mask.tolist() == [[0] * (n - 2) + [1] * 2, [1] * n]
    assert embeddings[0, :n - 2].eq(0).all() and embeddings[0, n - 2:].eq(1).all()
    assert torch.equal(embeddings[1, 3:], words)
    with pytest.raises(ValueError, match="the VLM reads 512: shorten the instruction"):
        tiny.vlm.join([["wait " * 600]])


def test_states_are_those_of_the_plain_chat(tiny, sources):
    """Eq. 1 by hand: Llama-3's chat; no padding, no mask, the library's own positions."""
    vlm = tiny.vlm
    frames = sources[0, SEEN]
    states = vlm.vision_tower(frames, output_hidden_states=True).hidden_states[-2]
    seen = vlm.mm_projector(states).flatten(0, 1)
    head = (f"<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n{GENERATE}<|eot_id|>"
            f"<|start_header_id|>user<|end_header_id|>\n\n")
    tail = "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n[GEN_VID]"
    with torch.no_grad():
        row = torch.cat([vlm.words(head), seen, vlm.words(SHORT), vlm.words(tail)])
        want = vlm.llm.model(inputs_embeds=row[None]).last_hidden_state[0]
    assert torch.allclose(tiny.encode_vlm(sources[:1], [SHORT])[0], want, atol=1e-5)


def test_states_do_not_depend_on_the_batch(tiny, sources):
    alone = [tiny.encode_vlm(sources[i:i + 1], [text])[0] for i, text in enumerate((SHORT, LONG))]
    both = tiny.encode_vlm(sources, [SHORT, LONG])
    assert len(alone[0]) < len(alone[1])
    for a, b in zip(alone, both):
        assert a.shape == b.shape and torch.allclose(a, b, atol=1e-5)
    singly = torch.cat([tiny.bridge([h]) for h in alone])
    assert torch.allclose(tiny.bridge(both), singly, atol=1e-5)


# -------------------------------------------------------------------------------------------- write

def test_what_is_written_is_the_likeliest_next_token_again_and_again(tiny, sources):
    """Without a cache, one row at a time."""
    vlm = tiny.vlm
    rows = [chat(GENERATE, [tokens, text]) for tokens, text in zip(vlm.see(sources), (SHORT, LONG))]
    stop = vlm.tokenizer.convert_tokens_to_ids("<|eot_id|>")
    want = []
    for row in rows:
        embeddings, ids = torch.cat([vlm.words(part) if isinstance(part, str) else part
                                     for part in row]), []
        for _ in range(5):
            token = vlm.llm(inputs_embeds=embeddings[None]).logits[0, -1].argmax()
            if token == stop:
                break
            ids.append(token.item())
            embeddings = torch.cat([embeddings, vlm.llm.get_input_embeddings()(token[None])])
        want.append(vlm.tokenizer.decode(ids))
    assert vlm.write(rows, 5) == want
