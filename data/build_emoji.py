"""Build the captioned emoji pack of data/ from four npm packages.

    mkdir npm && cd npm && npm init -y
    npm install --ignore-scripts emoji-datasource-google@16.0.0 emoji-datasource-twitter@16.0.0 \
        @lobehub/fluent-emoji-3d@1.1.0 emojibase-data@17.0.0
    python data/build_emoji.py npm/node_modules --out data

Writes one lossless WebP sheet per entry of ``SHEETS`` and ``emoji.jsonl``; the same packages and
the same Pillow give the same bytes.  What is left out, rounded and held out, and why, stands in
data/README.md.
"""
import argparse
import json
import sys
import zlib
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

SIZE = 64                                   # pixels per picture side
COLUMNS = 16                                # pictures per sheet row

SOURCES = {                                 # style name in captions: (folder of pictures, ending)
    "noto": ("emoji-datasource-google/img/google/64", ".png"),
    "twemoji": ("emoji-datasource-twitter/img/twitter/64", ".png"),
    "fluent 3d": ("@lobehub/fluent-emoji-3d/assets", ".webp"),
}
SHEETS = {                                  # file: (style, with skin tones?, rounding step)
    "emoji_64.noto.webp": ("noto", False, 5),
    "emoji_64.noto-tones.webp": ("noto", True, 9),
    "emoji_64.twemoji.webp": ("twemoji", False, 9),
    "emoji_64.fluent-3d.webp": ("fluent 3d", False, 9),
}
TONES = {1: "light", 2: "medium-light", 3: "medium", 4: "medium-dark", 5: "dark"}
OUTSIDE_GROUPS = ("flags", "symbols", "component")          # geometric symbols stay
HELD_EVERYWHERE = ("orange heart", "purple square", "green circle")
STYLE_CELLS = 0.05                          # share of style x concept cells that is held out
NEAR_COPY = 0.10                            # RMSE at 32 pixels, of the range [0, 1]


# ---- what the pictures are called ----

def code_points(hexcode):
    """Name a picture as all four packages can: lower case, no variation selector."""
    return "-".join(part for part in hexcode.lower().split("-") if part != "fe0f")


def tone_name(tone):
    """Spell emojibase's 1..5 (or a pair of them, for two people) in words."""
    return ", ".join(TONES[t] for t in (tone if isinstance(tone, list) else [tone]))


def read_concepts(modules):
    """Return {code points: record} for every emoji the pack may use, in emojibase's order."""
    names = read_json(modules / "emojibase-data/en/messages.json")
    groups = {g["order"]: g["key"] for g in names["groups"]}
    # Order 46 stands there twice, but only sweets use it; the later entry wins, and is theirs.
    subgroups = {g["order"]: g["key"] for g in names["subgroups"]}
    concepts = {}
    for entry in read_json(modules / "emojibase-data/en/data.json"):
        if "group" not in entry:
            continue
        group, subgroup = groups[entry["group"]], subgroups[entry["subgroup"]]
        label = entry["label"]
        if group in OUTSIDE_GROUPS and subgroup != "geometric":
            continue
        if label.split(":")[0] == "family" or label == "middle finger":
            continue
        base = code_points(entry["hexcode"])
        record = {"key": base, "base": base, "label": label, "tags": entry.get("tags", []),
                  "group": group, "subgroup": subgroup, "tone": None}
        concepts[base] = record
        for skin in entry.get("skins", []):
            key = code_points(skin["hexcode"])
            concepts[key] = record | {"key": key, "label": skin["label"],
                                      "tone": tone_name(skin["tone"])}
    return concepts


def role_and_gender(label):
    """Split "man cook: dark skin tone" into ("cook", "man"); (None, None) where that fails.

    Which way somebody faces is not part of the role: the mirrored picture of a
    held-out composition would give it away.
    """
    head, _, rest = label.partition(": ")
    features = [f for f in rest.split(", ")
                if f and not f.endswith("skin tone") and f != "facing right"]
    words = head.split() + features
    genders = [w for w in words if w in ("man", "woman")]
    if len(genders) != 1 or len(words) == 1:
        return None, None
    return " ".join(w for w in words if w != genders[0]), genders[0]


# ---- pictures ----

def over_white(path):
    """Read one picture, (64, 64, 3) uint8, on a white ground.

    Everything happens on premultiplied colours: averaging plain RGBA would mix
    the black that hides under alpha = 0 into the edges.
    """
    with Image.open(path) as picture:
        picture = picture.convert("RGBA")
    side = max(picture.size)
    if picture.size != (side, side):
        square = Image.new("RGBA", (side, side))
        square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
        picture = square
    picture = picture.convert("RGBa")                                  # premultiplied
    if side != SIZE:
        picture = picture.resize((SIZE, SIZE), Image.Resampling.BOX)
    rgba = np.asarray(picture).astype(np.int32)
    return np.clip(rgba[..., :3] + 255 - rgba[..., 3:], 0, 255).astype(np.uint8)


def read_style(modules, style, concepts):
    """Return {code points: picture} of one style, without repeated pictures.

    A picture that equals an earlier one is dropped.  Where a skin tone does not
    show (somebody in full gear), its caption would be untrue: all such go.
    """
    folder, ending = SOURCES[style]
    if not (modules / folder).is_dir():
        raise FileNotFoundError(f"{modules / folder}: no such folder; see the npm line in --help")
    files = {code_points(path.name.removesuffix(ending)): path
             for path in sorted((modules / folder).iterdir()) if path.name.endswith(ending)}
    wanted = [key for key, record in concepts.items()
              if key in files and (record["tone"] is None or style == "noto")]
    wanted.sort(key=lambda key: concepts[key]["tone"] is not None)     # untoned first
    pictures = {key: over_white(files[key]) for key in tqdm(wanted, desc=style, unit="picture")}

    owners = {}
    for key, picture in pictures.items():
        owners.setdefault(picture.tobytes(), []).append(key)
    for keys in owners.values():
        for key in keys[1:] if concepts[keys[0]]["tone"] is None else keys[len(keys) == 1:]:
            del pictures[key]
    return pictures


def rounded(picture, step):
    """Round to multiples of `step`; white stays white.  Off by at most ``step // 2``."""
    coarse = np.minimum((picture.astype(np.int32) + step // 2) // step * step, 255)
    return np.where(picture == 255, 255, coarse).astype(np.uint8)


def write_sheet(path, pictures):
    """Lay the pictures out row by row and save them, lossless."""
    rows = -(-len(pictures) // COLUMNS)
    tiles = np.full((rows * COLUMNS, SIZE, SIZE, 3), 255, np.uint8)
    tiles[:len(pictures)] = pictures
    tiles = tiles.reshape(rows, COLUMNS, SIZE, SIZE, 3)
    sheet = tiles.swapaxes(1, 2).reshape(rows * SIZE, COLUMNS * SIZE, 3)
    Image.fromarray(sheet).save(path, "WEBP", lossless=True, quality=100, method=6)


# ---- what is never trained on ----

def hold_out(concepts, pictures):
    """Choose the held-out compositions; return {(style, code points): reason}."""
    held = {}
    for style, own in pictures.items():
        for key in own:
            if concepts[key]["label"] in HELD_EVERYWHERE:
                held[style, key] = "colour x shape"
    roles = [("noto", key) for key in held_roles(concepts, pictures["noto"])]
    held |= dict.fromkeys(roles, "role x gender x tone")
    held |= dict.fromkeys(held_cells(concepts, pictures), "style x concept")
    return held


def held_roles(concepts, noto):
    """Yield a tenth of role x gender x tone as a Latin square.

    A role's twelve cells are numbered c = 6 * gender + tone; role number r gives
    up the cells with ``c % 10 == r % 10``.  So every pair (role, gender), (role,
    tone) and (gender, tone) is still trained on, only the triple is new.
    """
    cells = {}                                               # {role: {(gender, tone): keys}}
    for key in noto:
        record = concepts[key]
        role, gender = role_and_gender(record["label"])
        if role and (record["tone"] is None or record["tone"] in TONES.values()):
            cells.setdefault(role, {}).setdefault((gender, record["tone"]), []).append(key)
    order = [(g, t) for g in ("man", "woman") for t in (None, *TONES.values())]
    whole = sorted(role for role in cells if all(cell in cells[role] for cell in order))
    for r, role in enumerate(whole):
        for c, cell in enumerate(order):
            if c % 10 == r % 10:
                yield from cells[role][cell]


def held_cells(concepts, pictures):
    """Yield the (style, code points) of the concepts that one style never shows.

    Only concepts that all three styles have, and nothing with a sibling in its
    own style that would give it away: no people (tones, genders), no hearts or
    shapes (they stand for colour x shape), no picture with a near copy.
    """
    shared = [key for key in concepts if all(key in own for own in pictures.values())]
    toned = {record["base"] for record in concepts.values() if record["tone"]}
    lonely = [key for key in shared if key not in toned
              and concepts[key]["group"] != "people-body"
              and concepts[key]["subgroup"] not in ("heart", "geometric")]
    taken = set()
    for style, own in pictures.items():
        distance = nearest(own)
        ranked = sorted(lonely, key=lambda key: zlib.crc32(f"{style} {key}".encode()))
        free = [key for key in ranked if key not in taken and distance[key] > NEAR_COPY]
        chosen = free[:round(STYLE_CELLS * len(shared))]
        taken.update(chosen)
        yield from ((style, key) for key in chosen)


def nearest(own):
    """Return {code points: RMSE to the nearest other picture of the style}, at 32 pixels."""
    small = np.stack(list(own.values())).astype(np.float32) / 255
    half = SIZE // 2
    small = small.reshape(len(own), half, 2, half, 2, 3).mean(axis=(2, 4)).reshape(len(own), -1)
    power = (small ** 2).sum(axis=1)
    square = power[:, None] + power - 2 * small @ small.T
    np.fill_diagonal(square, np.inf)
    rmse = np.sqrt(np.maximum(square.min(axis=1), 0) / small.shape[1])
    return dict(zip(own, rmse.tolist(), strict=True))


# ---- files ----

def read_json(path):
    """Parse one JSON file of the packages."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; see the npm line in --help")
    return json.loads(path.read_text(encoding="utf-8"))


def jsonl_line(record, styles, held):
    """Return one line of emoji.jsonl; what a toned picture shares with its base is not repeated."""
    line = {"key": record["key"], "label": record["label"]}
    if record["tone"] is None:
        line |= {name: record[name] for name in ("tags", "group", "subgroup")}
    else:
        line |= {"base": record["base"], "tone": record["tone"]}
    line["styles"] = styles
    reasons = {s: held[s, record["key"]] for s in styles if (s, record["key"]) in held}
    if reasons:
        line["held_out"] = reasons
    return json.dumps(line, ensure_ascii=False, separators=(",", ":"))


def build(modules, out):
    """Write the sheets and the captions."""
    concepts = read_concepts(modules)
    pictures = {style: read_style(modules, style, concepts) for style in SOURCES}
    held = hold_out(concepts, pictures)
    lines = []
    for key, record in concepts.items():
        styles = [style for style, own in pictures.items() if key in own]
        if styles:
            lines.append(jsonl_line(record, styles, held))
    out.mkdir(parents=True, exist_ok=True)
    (out / "emoji.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")
    report(out / "emoji.jsonl", f"{len(lines)} lines, {len(held)} pictures held out")

    for name, (style, with_tones, step) in tqdm(SHEETS.items(), desc="encoding", unit="sheet"):
        exact = np.stack([pictures[style][key] for key in concepts if key in pictures[style]
                          and (concepts[key]["tone"] is not None) == with_tones])
        coarse = rounded(exact, step)
        write_sheet(out / name, coarse)
        report(out / name, f"{len(exact)} pictures, rounded to multiples of {step}, "
                           f"PSNR {psnr(exact, coarse):.1f} dB at 64 pixels, "
                           f"{psnr(halved(exact), halved(coarse)):.1f} dB at 32")


def halved(pictures):
    """Average 2 x 2 pixels."""
    n, half = len(pictures), SIZE // 2
    return pictures.reshape(n, half, 2, half, 2, 3).mean(axis=(2, 4))


def psnr(exact, coarse):
    """Peak signal-to-noise ratio over all pictures, in decibels of the range 0..255."""
    error = (exact.astype(np.float32) - coarse.astype(np.float32)) ** 2
    return 10 * np.log10(255 ** 2 / error.mean())


def report(path, what):
    """Say what one file holds, above the progress bar."""
    tqdm.write(f"{path.name}: {path.stat().st_size / 1e6:.2f} MB, {what}")


def main():
    """Parse the command line and build."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("modules", type=Path, metavar="NODE_MODULES",
                        help="the folder that npm filled")
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent,
                        help="folder to write to (default: this script's)")
    options = parser.parse_args()
    try:
        build(options.modules, options.out)
    except (OSError, ValueError) as error:
        print(f"build_emoji: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
