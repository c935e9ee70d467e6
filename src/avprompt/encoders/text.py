"""Frozen text towers: CLIP's (open_clip) and LAION-CLAP's (RoBERTa), and embeddings of class names computed once."""

from __future__ import annotations

import abc
import hashlib
import inspect
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from avprompt.encoders.base import FrozenEncoder
from avprompt.encoders.clap import projection, read_clap_weights
from avprompt.encoders.clip import QuickGELU, architecture, read_clip_weights
from avprompt.errors import ArgumentError, ShapeError, WeightsError
from avprompt.files import write_whole

CLIP_TEMPLATE, CLAP_TEMPLATE = "a photo of a {}.", "The sounds of {}"


class TextTower(FrozenEncoder):
    """A frozen text encoder: texts -> one embedding each, in the space that it shares with images or sounds.

    It is frozen, loaded, fingerprinted and recorded in checkpoints like the other encoders, but no backbone walks it.

    >>> from avprompt.encoders import TinyCLIPText
    >>> tower = TinyCLIPText()
    >>> isinstance(tower, TextTower), tower(["a photo of a red disc."]).shape
    (True, torch.Size([1, 64]))
    """

    @abc.abstractmethod
    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """K texts -> token ids (K, L) int64.

        Raises:
            ArgumentError: a text is longer than the tower reads; nothing is cut off in silence.
        """

    @abc.abstractmethod
    def forward(self, texts: Sequence[str]) -> Tensor:
        """K texts -> embeddings (K, E), not normalised."""

    def stem(self, x: Tensor) -> Tensor:
        """Token ids (K, L) int64 -> embeddings (K, L, W): a text tower takes neither frames nor sound."""
        return self.embed(x)


class CLIPText(TextTower):
    """CLIP's text transformer, open to learned contexts (CoOp, CoCoOp) and deep prompts (MaPLe).

    Args:
        model: architecture as open_clip names it: ViT-B-32, ViT-B-16, ViT-L-14.
        pretrained: `none` (random weights), a tag of open_clip's, or a local file of a whole CLIP; see
            `avprompt.encoders.clip.read_clip_weights`.
        quick_gelu: activation x sigmoid(1.702 x), that of OpenAI's weights; most others were trained with GELU.
        frozen: see `FrozenEncoder`.

    Attributes:
        logit_scale: logarithm of CLIP's learned scale of cosines.
        context_length: tokens of a text at most, begin and end included.

    Raises:
        ArgumentError: unknown architecture, another kind of text tower, or a tag of the other activation.
        WeightsError: the tag is unknown or cannot be fetched, or the file is missing or of another architecture.

    >>> import torch
    >>> with torch.device("meta"):  # sizes alone; drop this line for a network with weights
    ...     tower = CLIPText("ViT-B-32")
    >>> tower.dim, tower.context_length, tower.tokenize(["a photo of a dog."]).shape
    (512, 77, torch.Size([1, 77]))
    """

    unused_weights = ("visual.",)

    def __init__(
        self, model: str = "ViT-B-16", pretrained: str = "none", quick_gelu: bool = True, frozen: bool = True
    ) -> None:
        super().__init__(frozen)
        self._take_apart(self._build(model, QuickGELU if quick_gelu else nn.GELU))
        if pretrained != "none" and not self.is_meta():
            weights = read_clip_weights(model, pretrained, quick_gelu, "text.pretrained")
            self.load_library_weights(weights, pretrained)
        self.freeze()

    def _build(self, model: str, activation: type[nn.Module]) -> nn.Module:
        from open_clip.transformer import TextTransformer  # takes seconds: only where a CLIP is asked for

        config, plain = architecture(model), {"context_length", "vocab_size", "width", "heads", "layers"}
        if config["text_cfg"].keys() != plain:
            raise ArgumentError(
                "model",
                model,
                "a CLIP whose text tower is CLIP's own, such as ViT-B-16 or ViT-L-14",
                f"open_clip describes this one by {sorted(config['text_cfg'])}.",
            )
        return TextTransformer(**config["text_cfg"], output_dim=config["embed_dim"], act_layer=activation)

    def _take_apart(self, net: nn.Module) -> None:
        self.token_embedding, self.positional_embedding = net.token_embedding, net.positional_embedding
        self.transformer, self.ln_final, self.text_projection = net.transformer, net.ln_final, net.text_projection
        self.register_buffer("attn_mask", net.attn_mask, persistent=False)
        self.register_buffer("logit_scale", torch.tensor(1 / 0.07).log())

    @property
    def context_length(self) -> int:
        return len(self.positional_embedding)

    @property
    def dim(self) -> int:
        """Width E of the embeddings."""
        return self.text_projection.shape[1]

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """K texts -> token ids (K, context_length) int64 on the CPU: begin, open_clip's lower-case BPE, end, zeros.

        Raises:
            ArgumentError: a text is longer than `context_length`.
        """
        import open_clip

        tokenizer = open_clip.SimpleTokenizer(context_length=self.context_length)
        for text in texts:
            if len(tokenizer.encode(text)) + 2 > self.context_length:
                raise ArgumentError("texts", repr(text), f"at most {self.context_length - 2} tokens", "Shorten it.")
        return tokenizer(list(texts))

    def embed(self, ids: Tensor) -> Tensor:
        """Token ids (K, L) int64 -> embeddings (K, L, W), before positions are added."""
        return self.token_embedding(ids)

    def finalize(self, tokens: Tensor) -> Tensor:
        """End tokens of the last block (K, W) -> (K, E)."""
        return self.ln_final(tokens) @ self.text_projection

    def encode(
        self,
        embeddings: Tensor,
        end: Tensor,
        deep: Tensor | Sequence[Tensor] | None = None,
        span: tuple[int, int] | None = None,
    ) -> Tensor:
        """Embedded texts -> CLIP's embeddings; gradients reach what is spliced in, never the tower.

        The attention is causal, so that what follows the last end token is left out: same result in less time.

        Args:
            embeddings: (K, L, W), from `embed`, with learned vectors in the places of some tokens; no positions added.
            end: (K,) int64, place of each text's end token.
            deep: (J - 1, n, W) or a sequence of J - 1 (n, W) or (K, n, W): before block j = 1 ... J - 1, counted from
                0, the tokens at places 1 ... n are replaced by `deep[j - 1]` (MaPLe); later blocks let them flow.
            span: smallest and largest number in `end`, where they are known; reading them makes a GPU wait.

        Returns:
            (K, E), not normalised.

        Raises:
            ShapeError: more tokens than the tower has positions, an end beyond them, another width, or more deep
                prompts than blocks or places for them.
        """
        length, width = self.positional_embedding.shape
        if embeddings.ndim != 3 or embeddings.shape[1] > length or embeddings.shape[2] != width:
            raise ShapeError(
                "embeddings",
                tuple(embeddings.shape),
                f"(K, at most {length}, {width})",
                "Embed token ids with `embed`.",
            )
        first, last = (int(end.min()), int(end.max())) if span is None else span
        if end.shape != embeddings.shape[:1] or last >= embeddings.shape[1]:
            raise ShapeError(
                "end",
                f"{tuple(end.shape)}, up to {last}",
                f"({len(embeddings)},), below {embeddings.shape[1]}",
                "Give the places of the end tokens.",
            )
        used, deep = last + 1, () if deep is None else deep
        if len(deep) >= len(self.transformer.resblocks) or any(prompt.shape[-2] >= first for prompt in deep):
            raise ShapeError(
                "deep",
                f"{len(deep)} of {[tuple(prompt.shape) for prompt in deep][:1]}",
                f"fewer than {len(self.transformer.resblocks)} blocks and {first} tokens",
                "Choose a smaller depth or fewer prompts.",
            )
        x = embeddings[:, :used] + self.positional_embedding[:used].to(embeddings.dtype)
        mask = self.attn_mask[:used, :used].to(x.dtype)
        for number, block in enumerate(self.transformer.resblocks):
            if 0 < number <= len(deep):
                prompt = deep[number - 1].to(x.dtype)
                x = torch.cat((x[:, :1], prompt.expand(len(x), -1, -1), x[:, 1 + prompt.shape[-2] :]), dim=1)
            x = block(x, attn_mask=mask)
        return self.finalize(x[torch.arange(len(x), device=x.device), end])

    def forward(self, texts: Sequence[str]) -> Tensor:
        ids = self.tokenize(texts).to(self.positional_embedding.device)
        return self.encode(self.embed(ids), ids.argmax(-1))  # the end token has the highest id


class CLAPText(TextTower):
    """LAION-CLAP's text tower: RoBERTa, its pooler and CLAP's text projection.

    Args:
        pretrained: `none` (random weights) or a local file of a whole CLAP, which holds RoBERTa's weights as well; see
            `avprompt.encoders.clap.read_clap_weights`.
        tokenizer: folder of RoBERTa's tokenizer (`vocab.json` and `merges.txt`, or `tokenizer.json`), which CLAP's file
            does not hold; `None` where texts are never tokenized. Never fetched from a hub.
        frozen: see `FrozenEncoder`.

    Raises:
        WeightsError: the file is missing or of another architecture; the folder holds no tokenizer, or another one.

    >>> import torch
    >>> with torch.device("meta"):  # sizes alone; drop this line for a network with weights
    ...     tower = CLAPText()
    >>> tower.dim
    512
    """

    unused_weights = (
        "audio_branch.",
        "audio_projection.",
        "audio_transform.",
        "text_transform.",
        "logit_scale_",
        "text_branch.embeddings.position_ids",
    )
    #: tokens of a text at most, begin and end included, in CLAP's training
    context_length = 77

    def __init__(self, pretrained: str = "none", tokenizer: Path | None = None, frozen: bool = True) -> None:
        super().__init__(frozen)
        self.text_branch = self._build()
        self.text_projection = projection(self.text_branch.config.hidden_size)
        self.tokenizer: Any = None
        if tokenizer is not None and not self.is_meta():
            self.tokenizer = read_tokenizer(tokenizer, self.text_branch.config.vocab_size)
        if pretrained != "none" and not self.is_meta():
            self.load_library_weights(read_clap_weights(pretrained, "text.pretrained"), pretrained)
        self.freeze()

    def _build(self, **sizes: int) -> nn.Module:
        from transformers import RobertaConfig, RobertaModel  # takes seconds

        return RobertaModel(
            RobertaConfig(
                **{
                    "vocab_size": 50265,
                    "max_position_embeddings": 514,
                    "type_vocab_size": 1,
                    "layer_norm_eps": 1e-5,
                    **sizes,
                }
            )
        )

    @property
    def dim(self) -> int:
        """Width E of the embeddings."""
        return self.text_projection[-1].out_features

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """K texts -> token ids (K, L) int64 on the CPU, padded to the longest with RoBERTa's padding.

        Raises:
            ArgumentError: a text is longer than `context_length`.
            WeightsError: built without a tokenizer.
        """
        if self.tokenizer is None:
            raise WeightsError(
                "text.tokenizer",
                None,
                "a folder with RoBERTa's vocab.json and merges.txt",
                "Save roberta-base's tokenizer there, or give a file of cached class embeddings.",
            )
        ids = self.tokenizer(list(texts), padding=True, return_tensors="pt")["input_ids"]
        if ids.shape[1] > self.context_length:
            raise ArgumentError(
                "texts", f"{ids.shape[1]} tokens, the longest", f"at most {self.context_length}", "Shorten it."
            )
        return ids

    def embed(self, ids: Tensor) -> Tensor:
        """Token ids (K, L) int64 -> embeddings (K, L, W), before positions are added."""
        return self.text_branch.embeddings.word_embeddings(ids)

    def finalize(self, tokens: Tensor) -> Tensor:
        """RoBERTa's pooled output (K, W) -> (K, 512)."""
        return self.text_projection(tokens)

    def forward(self, texts: Sequence[str]) -> Tensor:
        ids = self.tokenize(texts).to(self.text_projection[0].weight.device)
        seen = ids != self.text_branch.config.pad_token_id
        return self.finalize(self.text_branch(input_ids=ids, attention_mask=seen).pooler_output)


def read_tokenizer(folder: str | Path, size: int) -> object:
    """RoBERTa's tokenizer from a local folder.

    For a folder without the files transformers answers with an empty tokenizer instead of an error, and every text
    would become the same few unknown tokens.

    Args:
        folder: with `vocab.json` and `merges.txt`, or `tokenizer.json`.
        size: entries that it must have, RoBERTa's 50265.

    Raises:
        WeightsError: files are missing or hollow, or the tokenizer is another one.
    """
    from transformers import RobertaTokenizer

    folder, key = Path(folder), "text.tokenizer"
    hint = (
        "Where there is a network, `AutoTokenizer.from_pretrained('roberta-base').save_pretrained(FOLDER)` of "
        "transformers writes it; bring the folder here and name it."
    )
    if not any(
        all((folder / name).is_file() for name in names)
        for names in (("tokenizer.json",), ("vocab.json", "merges.txt"))
    ):
        raise WeightsError(key, folder, "a folder with vocab.json and merges.txt, or tokenizer.json", hint)
    tokenizer = RobertaTokenizer.from_pretrained(str(folder), local_files_only=True)
    probe = [tokenizer.pad_token_id, *tokenizer(" the.")["input_ids"]]  # shows special tokens, order and merges at once
    if len(tokenizer) != size or probe != [1, 0, 5, 4, 2]:
        raise WeightsError(
            key,
            f"{folder}: {len(tokenizer)} entries, padding and ' the.' as {probe}",
            f"RoBERTa's {size} entries, [1, 0, 5, 4, 2]",
            hint,
        )
    return tokenizer


def class_texts(names: Sequence[str], template: str, spaces: bool = True) -> list[str]:
    """Sentences about classes.

    Args:
        names: of the classes, such as `Church_bell`.
        template: with one `{}` for the name, such as `CLIP_TEMPLATE` or `CLAP_TEMPLATE`.
        spaces: write underscores of names as spaces; DG-SCT's released code does so for CLIP and not for CLAP.

    Raises:
        ArgumentError: the template has no place for a name, or several.
    """
    if template.count("{}") != 1:
        raise ArgumentError("template", repr(template), "one {} for the name of a class", "Correct it.")
    return [template.replace("{}", name.replace("_", " ") if spaces else name) for name in names]


def class_embeddings(
    tower: TextTower | Callable[[], TextTower] | None, texts: Sequence[str], cache: Path | None = None
) -> Tensor:
    """Embeddings of a frozen text tower: read from the cache file if it exists, else computed and written to it.

    If the file exists, the tower is not needed: pass a function that builds it, or `None`, and it is never built.

    Args:
        tower: the tower, a function that builds it (called only if the embeddings have to be computed), or `None`.
        texts: K sentences.
        cache: .safetensors file of the embeddings; its metadata hold the texts, and the tower's class, arguments,
            fingerprint and weights. A tower that is not built is known by the last three of what its `partial` says.

    Returns:
        (K, E) float32 on the CPU, not normalised.

    Raises:
        WeightsError: the file holds other texts, was written by another tower than the one given, or is no such file;
            there is neither a file nor a tower.
        ArgumentError: the tower is trained, so that its embeddings are not constant.
    """
    known = {} if tower is None else _identity(tower)
    if cache is not None and Path(cache).is_file():
        return _read_cache(Path(cache), texts, known)
    if tower is None:
        raise WeightsError(
            "text", cache, "an existing file of class embeddings, or a text tower", "Give one of the two."
        )
    tower = tower if isinstance(tower, TextTower) else tower()
    if not tower.frozen:
        raise ArgumentError("text", "frozen: False", "a frozen tower", "Encode the texts in every step instead.")
    with torch.no_grad():
        embeddings = tower(texts).float().cpu()
    if cache is not None:
        written = {"texts": json.dumps(list(texts)), **known, **_identity(tower)}
        # runs of a sweep share the file
        write_whole(Path(cache), save({"embeddings": embeddings.contiguous()}, written))
    return embeddings


def _identity(tower: TextTower | Callable[[], TextTower]) -> dict[str, str]:
    """What is known of a tower: its fingerprint, or without building it its arguments and its file's digest."""
    if isinstance(tower, TextTower):
        return {"tower": type(tower).__name__, "fingerprint": tower.fingerprint()}
    recipe = inspect.unwrap(tower)
    if not isinstance(recipe, partial):
        return {}
    arguments = {
        name: str(value) for name, value in sorted(recipe.keywords.items()) if name not in ("pretrained", "tokenizer")
    }
    # the class, which a parser's partial holds among its arguments
    made = next((value for value in (*recipe.args, recipe.func) if isinstance(value, type)), None)
    known = {"tower": getattr(made, "__name__", "unknown"), "arguments": json.dumps(arguments)}
    source = Path(recipe.keywords.get("pretrained", ""))
    if source.is_file():
        known["weights"] = digest(source)
    elif not source.suffix:  # a tag; a file that is not there says nothing
        known["weights"] = str(source)
    return known


def digest(path: Path) -> str:
    """SHA-256 of a file's length and of 64 pieces of it, which gigabytes of other weights do not share."""
    size, piece = path.stat().st_size, 1 << 16
    found = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        for place in range(64):
            file.seek(max(0, size - piece) * place // 63)
            found.update(file.read(piece))
    return found.hexdigest()


def _read_cache(path: Path, texts: Sequence[str], identity: dict[str, str]) -> Tensor:
    hint = "Delete the file to have it computed again, or name another one."
    try:
        with safe_open(path, "pt") as file:
            known, embeddings = file.metadata() or {}, file.get_tensor("embeddings")
    except SafetensorError as error:
        raise WeightsError(path, error, "a file written by `class_embeddings`", hint) from error
    found = json.loads(known.get("texts", "[]"))
    if found != list(texts):
        pairs = (pair for pair in zip(found, texts) if pair[0] != pair[1])
        there, asked = next(pairs, (f"{len(found)} texts", len(texts)))
        raise WeightsError(path, f"embeddings of other texts: {there!r}", f"{asked!r}", hint)
    if other := [name for name, value in identity.items() if known.get(name, value) != value]:
        raise WeightsError(
            path,
            f"embeddings of another text tower: { ({name: known[name] for name in other}) }",
            f"{ ({name: identity[name] for name in other}) }",
            hint,
        )
    return embeddings
