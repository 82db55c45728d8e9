"""Captions: the plain one that prompts use, and the mix that training sees."""

TEMPLATES = (
    "a {style} emoji of {label}",
    "{label} as a {style} emoji",
    "a picture of {label} in {style} style",
    "{label}, {style}",
)
PLAIN, TEMPLATE = 0.6, 0.2                  # what remains of 1 is label, two tags, style


def caption(record):
    """Return the plain caption: "LABEL, noto style", or the label where there is no style.

    Examples
    --------
    >>> caption({"label": "red heart", "style": "noto"})
    'red heart, noto style'
    >>> caption({"label": "ankle boot", "style": ""})
    'ankle boot'
    """
    style = record.get("style")
    return f"{record['label']}, {style} style" if style else record["label"]


def captions(record, generator):
    """Draw one caption of the training mix.

    60 % are plain, 20 % follow a template, 20 % name two tags between label and
    style: a model trained on one wording only would know no other.  Without a
    style there is nothing to word differently but the tags; without tags
    neither, and the caption is the label.

    Parameters
    ----------
    record : dict
        With ``label``, and perhaps ``style`` and ``tags``.
    generator : np.random.Generator
        Every call takes one draw, whatever the record; some take a second.

    Returns
    -------
    caption : str
    """
    u = generator.random()
    label, style, tags = record["label"], record.get("style"), telling_tags(record)
    if u < PLAIN or (u < PLAIN + TEMPLATE and not style) or (u >= PLAIN + TEMPLATE and not tags):
        return caption(record)
    if u < PLAIN + TEMPLATE:
        return TEMPLATES[generator.integers(len(TEMPLATES))].format(label=label, style=style)
    chosen = generator.choice(len(tags), size=min(2, len(tags)), replace=False)
    return caption(record | {"label": ", ".join([label, *(tags[i] for i in chosen)])})


def telling_tags(record):
    """Return the tags that add a word to the label."""
    known = set(record["label"].lower().replace(",", " ").replace(":", " ").split())
    return [tag for tag in record.get("tags", ()) if not known.issuperset(tag.lower().split())]
