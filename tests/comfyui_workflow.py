"""Reads a workflow as ComfyUI's front-end saves it and gives what the front-end would queue."""

WIDGETS = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}
SEEDS = {"seed", "noise_seed"}
NOT_QUEUED = {"MarkdownNote", "Note"}


def to_api(workflow, input_types):
    """{node id: class and inputs}; `input_types(class)` is the node's INPUT_TYPES()."""
    origins = {link[0]: [str(link[1]), link[2]] for link in workflow["links"]}
    prompt = {}
    for node in workflow["nodes"]:
        if node["type"] in NOT_QUEUED:
            continue
        linked = {
            slot["name"]: origins[slot["link"]]
            for slot in node.get("inputs", [])
            if slot.get("link") is not None
        }
        values = iter(node.get("widgets_values") or [])
        inputs = {}
        for name, kind, options in _inputs(input_types(node["type"])):
            if isinstance(kind, list) or kind in WIDGETS:
                inputs[name] = next(values)
                if name in SEEDS or options.get("control_after_generate"):
                    next(values)  # what becomes of the seed after each run
            if name in linked:
                inputs[name] = linked.pop(name)
        assert not linked, f"{node['type']} has no input {linked}"
        assert list(values) == [], f"{node['type']} has more values than widgets"
        prompt[str(node["id"])] = {"class_type": node["type"], "inputs": inputs}
    return prompt


def _inputs(types):
    for group in ("required", "optional"):
        for name, (kind, *options) in types.get(group, {}).items():
            yield name, kind, options[0] if options else {}
