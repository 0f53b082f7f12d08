"""Which column of a table is the text, the second text and the label."""

from collections.abc import Iterable
from typing import Any

from unipelt.data.examples import Columns
from unipelt.data.tables import TRANSLATION, Table, as_number, is_missing, listed
from unipelt.errors import DataError, did_you_mean

TEXTS = (
    "text", "sentence", "review", "content", "comment", "message", "document", "body", "tweet", "utterance", "tokens", "words",
)  # fmt: skip
PAIRS = (
    ("sentence1", "sentence2"), ("question1", "question2"), ("premise", "hypothesis"), ("question", "sentence"),
    ("text1", "text2"), ("text", "text_pair"),
)  # fmt: skip
LABELS = (
    "label", "labels", "stars", "rating", "category", "target", "class", "score", "sentiment", "topic", "intent", "tags",
    "ner_tags",
)  # fmt: skip
CHATS = ("messages", "conversations")
ANSWERED = (  # a text and the text that answers it; the last three are those of xsum, samsum and cnn_dailymail
    ("prompt", "completion"), ("source", "target"), ("document", "summary"), ("dialogue", "summary"), ("article", "highlights"),
)  # fmt: skip
INDICES = ("", "id", "idx", "index", "unnamed: 0")  # row numbers, as GLUE and pandas write them


def choose_columns(
    table: Table, *, text: str | None = None, text_pair: str | None = None, label: str | None = None,
    labelled: bool = True, trained: Columns | None = None,
) -> Columns:  # fmt: skip
    """The columns that are named, then those that a run was trained on, then the only column that can be meant.

    labelled: whether a label is needed; without it only a column named by `label` is one. Raises DataError.
    """
    flags = {"--text-column": text, "--text-pair-column": text_pair, "--label-column": label}
    for flag, column in flags.items():
        if column is not None and column not in table.columns:
            near = did_you_mean(column, table.columns)
            advice = f"it has {listed(table.columns)}" if near.startswith("known") else near
            raise DataError(f"{table.name} has no column {column!r} ({flag}); {advice}")
    if trained is not None:
        text, text_pair = text or trained.text, text_pair or trained.text_pair
        for flag, column in {"--text-column": text, "--text-pair-column": text_pair}.items():
            if column is not None and column not in table.columns:
                raise DataError(
                    f"{table.name} has no column {column!r}, which the run was trained on, but {listed(table.columns)}; "
                    f"give it that header, or name its column with {flag}"
                )
    if text is None and label is None and (generated := _generation_columns(table, labelled)):
        return generated
    named = [column for column in (text, text_pair, label) if column is not None]
    chat = text is not None and text == label and text.casefold() in CHATS  # which holds its own answers
    if len(set(named)) < len(named) - chat:
        raise DataError(f"{table.name}: one column is named twice among {listed(named)}; give each flag its own column")
    if text_pair is not None and text is None:
        raise DataError(
            f"{table.name}: --text-pair-column {text_pair!r} is the second text; name the first one with --text-column"
        )
    free = [column for column in table.columns if column not in named and column.casefold() not in INDICES]
    if label is None:
        candidates = [column for column in free if column.casefold() in LABELS]
        free = [column for column in free if column not in candidates] if text is None else free
        label = _only_label(table, candidates) if candidates and labelled else None
    if text is None:
        text, text_pair = _text_columns(table, free)
    if label is None and labelled:
        rest = [column for column in free if column not in (text, text_pair)]
        if not rest:
            raise DataError(
                f"{table.name}: no label column besides the text {text!r}; add one, or name it with --label-column"
            )
        label = _only_label(table, rest)
    return Columns(text=text, text_pair=text_pair, label=label)


def _generation_columns(table: Table, labelled: bool) -> Columns | None:
    """The columns of chats, or of texts and their answers, recognised by their names; a chat column holds the answers too."""
    by_name = {column.casefold(): column for column in table.columns}
    for name in CHATS:
        if name in by_name and any(
            isinstance(cell, list) or str(cell).startswith("[") for cell in table.columns[by_name[name]]
        ):
            return Columns(text=by_name[name], label=by_name[name] if labelled else None)
    languages = [column for column in table.columns if column.startswith(f"{TRANSLATION}.")]
    if len(languages) == 2:  # from English, as wmt16's ro-en is used, else from the first
        source = f"{TRANSLATION}.en" if f"{TRANSLATION}.en" in languages else languages[0]
        (target,) = (column for column in languages if column != source)
        return Columns(text=source, label=target if labelled else None)
    for text, answer in ANSWERED:
        if text in by_name and answer in by_name and _holds_text(table.columns[by_name[answer]]):
            return Columns(text=by_name[text], label=by_name[answer] if labelled else None)
    return None


def _text_columns(table: Table, free: list[str]) -> tuple[str, str | None]:
    by_name = {column.casefold(): column for column in free}
    pairs = [(by_name[a], by_name[b]) for a, b in PAIRS if a in by_name and b in by_name]
    paired = {column for pair in pairs for column in pair}
    singles = [column for column in free if column.casefold() in TEXTS and column not in paired]
    if not pairs and not singles:
        singles = [column for column in free if _holds_text(table.columns[column])]
    if len(pairs) + len(singles) == 1:
        chosen = pairs[0] if pairs else (singles[0], None)
        for column in filter(None, chosen):
            if not _holds_text(table.columns[column]) and not all(map(is_missing, table.columns[column])):
                raise DataError(
                    f"{table.name}: column {column!r} holds numbers, expected text; choose the text with --text-column"
                )
        return chosen
    if not pairs and not singles:
        raise DataError(f"{table.name}: no column of text among {listed(table.columns)}; name it with --text-column")
    candidates = [*(column for pair in pairs for column in pair), *singles]
    raise DataError(
        f"{table.name}: columns {listed(candidates)} could each be the text; choose with --text-column "
        "(and --text-pair-column for two texts)"
    )


def _only_label(table: Table, columns: list[str]) -> str:
    if len(columns) > 1:
        raise DataError(f"{table.name}: columns {listed(columns)} could each be the label; choose with --label-column")
    return columns[0]


def _holds_text(values: Iterable[Any]) -> bool:
    """Whether any cell is a text that is not a number, or a list of tokens."""
    return any(isinstance(value, str | list) and as_number(value) is None and not is_missing(value) for value in values)
