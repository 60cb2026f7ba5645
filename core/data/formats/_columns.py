"""Names of columns that people use for the same thing, in lower case."""

TURNS = ("messages", "conversations", "conversation", "dialog", "dialogue", "turns", "chat")
QUESTIONS = ("prompt", "instruction", "question", "query", "input", "inputs", "problem", "context")
ANSWERS = ("completion", "output", "answer", "response", "target", "targets", "solution")
LABELS = ("label", "category", "class", "label_text", "intent", "labels")
SYSTEMS = ("system", "system_prompt", "persona")
TOOLS, TEMPLATE_KWARGS = ("tools", "functions"), ("chat_template_kwargs",)
IDS, PARENTS = ("id", "message_id"), ("parent_id", "parent")
KNOWN = (
    *TURNS,
    *QUESTIONS,
    *ANSWERS,
    *LABELS,
    *SYSTEMS,
    *IDS,
    *PARENTS,
    "text",
    "history",
    "chosen",
    "rejected",
    "content",
)
# Names that are worth a look when a column is almost one; short ones are almost anything.
MISSPELLED = (
    "instruction",
    "input",
    "output",
    "prompt",
    "completion",
    "question",
    "answer",
    "response",
    "system",
    "history",
    "messages",
    "conversations",
    "text",
    "label",
    "category",
)
