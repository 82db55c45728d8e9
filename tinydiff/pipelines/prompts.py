"""What a user asked to be drawn: a list of prompts, one a picture."""


def check_prompts(prompts):
    """Refuse a list in which any prompt is empty.

    Raises
    ------
    ValueError
        Saying what to write instead.
    """
    if not prompts or not all(p.strip() for p in prompts):
        raise ValueError('the prompt is empty; describe a picture, e.g. "red heart, noto style"')


def one_a_picture(prompt, count):
    """Return the list of prompts to draw, one a picture.

    Parameters
    ----------
    prompt : str or list of str
    count : int
        How many pictures of a single prompt.

    Raises
    ------
    ValueError
        If a prompt is empty or `count` does not fit.
    """
    if not isinstance(count, int) or count < 1:
        raise ValueError(f"count={count!r}: a whole number from 1 is needed")
    if not isinstance(prompt, str) and count > 1:
        raise ValueError("count is for a single prompt; repeat the prompts in the list instead")
    prompts = [prompt] * count if isinstance(prompt, str) else list(prompt)
    check_prompts(prompts)
    return prompts
