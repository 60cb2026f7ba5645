"""Chat templates for bases that bring none: the user chooses one, and sees what it makes of the rows. Needs
no torch.

Each ends an answer with a token that the base knows as its end, whatever its marks are: the adapter learns to
stop by it.
"""

from __future__ import annotations

from core.errors import InvalidConfig

PLAIN = "plain"
TEMPLATES: dict[str, str] = {
    PLAIN: (
        "{% for message in messages %}{{ '### ' + message['role'].capitalize() + ':\\n' + "
        "message['content'] }}"
        "{% if message['role'] == 'assistant' and eos_token %}{{ eos_token }}{% endif %}{{ '\\n\\n' "
        "}}{% endfor %}"
        "{% if add_generation_prompt %}{{ '### Assistant:\\n' }}{% endif %}"
    ),
    "chatml": (
        "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] }}"
        "{{ eos_token if message['role'] == 'assistant' and eos_token else '<|im_end|>' }}{{ '\\n' "
        "}}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    ),
    "llama-3": (
        "{{ bos_token or '' }}{% for message in messages %}"
        "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] }}"
        "{{ eos_token if message['role'] == 'assistant' and eos_token else '<|eot_id|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
    ),
    "alpaca": (
        "{% for message in messages %}{% if message['role'] == 'system' %}{{ message['content'] + '\\n\\n' }}"
        "{% elif message['role'] == 'assistant' %}{{ '### Response:\\n' + message['content'] + "
        "(eos_token or '') + '\\n\\n' }}"
        "{% else %}{{ '### Instruction:\\n' + message['content'] + '\\n\\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '### Response:\\n' }}{% endif %}"
    ),
}


def chosen_template(name: str) -> str:
    """The known template of this name; the plain one for an empty name. Raises InvalidConfig."""
    if (name or PLAIN) not in TEMPLATES:
        raise InvalidConfig(f"There is no chat template {name!r}; known are {', '.join(TEMPLATES)}.")
    return TEMPLATES[name or PLAIN]
