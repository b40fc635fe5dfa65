"""What a recipe says about a wrong setting, on its command line or in a YAML file.

jsonargparse prints the usage of all settings, and the objection of each type of a union. Here it is one sentence: the
setting and its value, what is allowed, and what to do.
"""

import re
from collections.abc import Iterable
from difflib import get_close_matches
from pkgutil import resolve_name

from jsonargparse import ArgumentParser

KEY = re.compile(r"Parser key \"(?P<key>[^\"]+)\":?\s*")
CLASS = re.compile(r"Problem with given class_path '(?P<path>[\w.]+)'")
NO_CLASS = re.compile(r"Expected a dot import path string: (?P<path>\S+)")
STRAY_WORD = re.compile(r"unrecognized arguments: (?P<word>[^-]\S*)")
UNKNOWN = re.compile(r"(?:unrecognized arguments: -*|[^\n]*[Oo]ption ')(?P<name>[^\s'=]+)")
EXPECTED = re.compile(r"Expected an? (.+?)(?:\. Got value: .*)?$", re.MULTILINE)
VALUE = re.compile(r"(?:Got|Given) value: (.*)")
FEW = 15  # settings that a sentence may list
TYPES = {
    "int": "an integer",
    "float": "a number",
    "bool": "true or false",
    "NoneType": "null",
    "list": "a list, such as [a, b]",
    "Sequence": "a list, such as [a, b]",
}


def describe_wrong_setting(parser: ArgumentParser, message: str, error: BaseException | None) -> str:
    """Describe in one sentence why a setting is refused.

    Args:
        parser: Parser of the subcommand.
        message: What jsonargparse says.
        error: The exception that jsonargparse reports. Its causes say what each type of a union refuses.
    """
    setting, path, reports = "", "", [message]  # reports: the messages about this setting, outermost first
    for text in _messages(message, error):
        if found := CLASS.match(text):
            path, reports = found["path"], []
        elif (found := KEY.match(text)) and not (setting and reports):  # of the command, or of that class
            setting, reports = f"{setting}.{found['key']}".lstrip("."), [text]
        else:
            reports.append(text)
    reason = KEY.sub("", reports[-1], count=1)
    if stray := STRAY_WORD.match(reason):
        return f"{stray['word']!r} is not the value of a setting; quote a value that contains spaces."
    if unknown := UNKNOWN.match(reason):
        name = f"{setting}.{unknown['name']}".lstrip(".")
        suggestion = _suggest(name, _settings_of(path, setting) if path else _names(parser))
        program = parser.prog.replace(" [options]", "")
        return f"--{name} is not a setting; {suggestion or f'{program} --help lists all settings.'}"
    if no_class := NO_CLASS.match(reason):
        return f"--{setting}={no_class['path']} is not the import path of a class; write it as package.module.Class."
    if (types := EXPECTED.findall(reports[0])) and (values := VALUE.findall(reports[0])):
        return f"--{setting}={values[-1]} is not allowed; give {_describe_types(types)}."
    if path and not KEY.match(reports[0]):
        return f"--{setting}: {path!r} cannot be used ({' '.join(reason.split())}); correct its class_path."
    return " ".join((f"--{setting}: {reason}" if setting else reason).split())


def _messages(message: str, error: BaseException | None) -> list[str]:
    """The message and those of its causes, outermost first, without repetitions."""
    texts = [message]
    while error is not None:
        texts.append(str(error))
        error = error.__cause__ or error.__context__
    return list(dict.fromkeys(texts))


def _names(parser: ArgumentParser) -> list[str]:
    """Names of the settings that a parser takes, such as ``model.lr``."""
    return [action.dest for action in parser._actions if not action.dest.endswith("help")]


def _settings_of(path: str, section: str) -> list[str]:
    """Names of the settings of a class."""
    parser = ArgumentParser(add_help=False)
    parser.add_class_arguments(resolve_name(path), section)
    return _names(parser)


def _suggest(name: str, known: Iterable[str]) -> str:
    """Name the settings that were probably meant, or all settings of a small section; else an empty string."""
    section, _, word = name.rpartition(".")
    others = {each.rpartition(".")[2]: each for each in known if section and each.rpartition(".")[0] == section}
    close = [others[each] for each in get_close_matches(word, others, n=2)]
    if not others:
        close = [each for each in known if each.endswith(f".{word}")] or get_close_matches(name, known, n=2)
    if close:
        return f"did you mean {' or '.join(f'--{each}' for each in close)}?"
    few = 0 < len(others) <= FEW
    return f"choose from {', '.join(sorted(others))}." if few else ""


def _describe_types(types: Iterable[str]) -> str:
    """``an integer or null`` for ``<class 'int'>`` and ``<class 'NoneType'>``; the values of literals."""
    values, names = dict[str, None](), dict[str, None]()
    for each in types:
        if "Literal[" in each:
            values |= dict.fromkeys(value.strip("'") for value in each.partition("[")[2].rstrip("]").split(", "))
        else:
            name = re.sub(r"<class '(?:[\w.]+\.)?(\w+)'>", r"\1", each)
            names[TYPES.get(name, name)] = None
    return " or ".join([*([f"one of {', '.join(values)}"] if values else []), *names])
