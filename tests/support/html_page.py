"""A page of HTML as a test reads it, and the rules that every page of the service holds."""

import re
from dataclasses import dataclass, field
from html.parser import HTMLParser

VOID = frozenset("area base br col embed hr img input link meta source track wbr".split())
"""Elements without an end."""
_REFERENCES = ("aria-labelledby", "aria-describedby", "for", "popovertarget", "list")
"""Attributes that name the ids of other elements."""


@dataclass
class Element:
    """An element of a page."""

    tag: str
    attributes: dict[str, str]
    parent: "Element | None" = None
    children: list["Element"] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        """Text of the element and of all that is in it."""
        return " ".join(" ".join(self._texts()).split())

    def _texts(self) -> list[str]:
        found = list(self.texts)
        for child in self.children:
            found += child._texts()
        return found

    def all(self, tag: str = "", **attributes: str) -> list["Element"]:
        """The elements in this one with a tag and attributes, in the order of the page."""
        found = []
        for child in self.children:
            matches = not tag or child.tag == tag
            for name, value in attributes.items():
                matches = matches and child.attributes.get(name.rstrip("_")) == value
            if matches:
                found.append(child)
            found += child.all(tag, **attributes)
        return found

    def one(self, tag: str = "", **attributes: str) -> "Element":
        """The only element of a kind."""
        found = self.all(tag, **attributes)
        assert len(found) == 1, (tag, attributes, len(found))
        return found[0]

    def inside(self, tag: str) -> bool:
        """Whether this element is in one with a tag."""
        return self.parent is not None and (self.parent.tag == tag or self.parent.inside(tag))


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.root = Element("", {})
        self.place = self.root

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(set(names)) == len(names), f"an attribute of {tag} is given twice: {names}"
        element = Element(tag, {name: value or "" for name, value in attrs}, self.place)
        self.place.children.append(element)
        if tag not in VOID:
            self.place = element

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.place = self.place.parent or self.root

    def handle_endtag(self, tag: str) -> None:
        assert self.place.tag == tag, f"</{tag}> ends <{self.place.tag}>"
        assert self.place.parent is not None
        self.place = self.place.parent

    def handle_data(self, data: str) -> None:
        self.place.texts.append(data)


def parse(text: str) -> Element:
    """Read a page. Every element must be ended in its order."""
    reader = _Reader()
    reader.feed(text)
    reader.close()
    assert reader.place is reader.root, f"<{reader.place.tag}> is not ended"
    return reader.root


def check_page(text: str) -> Element:
    """Read a page, and check what a browser with the service's policy, a screen reader and a
    keyboard need of it.
    """
    page = parse(text)
    _check_policy(page.all())
    check_accessible(page)
    return page


def check_accessible(page: Element) -> None:
    """Check what a screen reader and a keyboard need of a page."""
    elements = page.all()
    _check_references(elements)
    _check_structure(page)
    for element in elements:
        _check_name(page, element)


def _check_policy(elements: list[Element]) -> None:
    """No inline script and style, and nothing of another host, except links that are followed."""
    for element in elements:
        for name, value in element.attributes.items():
            assert not name.startswith("on"), (element.tag, name)
            assert name != "style", (element.tag, value)
            assert not value.strip().lower().startswith(("javascript:", "data:")), (name, value)
            if name in ("src", "action", "formaction", "data-events") or element.tag == "link":
                assert not re.match(r"(\w+:)?//", value), (element.tag, name, value)
        if element.tag == "script":
            assert element.attributes["src"].startswith("/static/app.js")
            assert not element.text
        assert element.tag not in ("style", "iframe", "object", "embed", "img", "base")
        if element.tag == "form" and element.attributes.get("method") == "post":
            hidden = element.all("input", name="csrf_token")
            assert len(hidden) == 1, "a form has no CSRF token"


def _check_references(elements: list[Element]) -> None:
    ids = [element.attributes["id"] for element in elements if "id" in element.attributes]
    assert len(set(ids)) == len(ids), [name for name in ids if ids.count(name) > 1]
    for element in elements:
        for name in _REFERENCES:
            for target in element.attributes.get(name, "").split():
                assert target in ids, (element.tag, name, target)
        href = element.attributes.get("href", "")
        if href.startswith("#"):
            assert href[1:] in ids, href


def _check_structure(page: Element) -> None:
    """One main part and one heading of the first level; no level is left out."""
    assert page.one("html").attributes["lang"] == "en"
    assert page.one("head").one("title").text
    assert "width=device-width" in page.one("meta", name="viewport").attributes["content"]
    main = page.one("main")
    assert page.all("a", class_="skip")[0].attributes["href"] == f"#{main.attributes['id']}"
    level = 0
    headings = [element for element in main.all() if re.fullmatch("h[1-6]", element.tag)]
    assert [heading.tag for heading in headings].count("h1") == 1
    for heading in headings:
        assert heading.text, heading.tag
        assert int(heading.tag[1]) <= level + 1, (heading.text, level)
        level = int(heading.tag[1])
    for table in page.all("table"):
        assert table.one("caption").text
        assert ancestor_has_class(table, "scroll")
        for head in table.all("th"):
            assert head.attributes.get("scope") in ("col", "row")
            # A heading without text stands above the names of the rows.
            assert head.text or head is table.all("th")[0] or head.inside("thead")


def ancestor_has_class(element: Element, name: str) -> bool:
    """Whether an element is in one with a class."""
    parent = element.parent
    if parent is None:
        return False
    return name in parent.attributes.get("class", "").split() or ancestor_has_class(parent, name)


def _check_name(page: Element, element: Element) -> None:
    """What can be operated, and what is an image, has a name."""
    given = element.attributes
    if element.tag in ("input", "select", "textarea"):
        if given.get("type") == "hidden" or "hidden" in given:
            return
        labels = page.all("label", for_=given["id"])
        assert len(labels) == 1, given
        assert labels[0].text, given
    elif element.tag in ("button", "a", "summary"):
        assert element.text, given
        assert element.tag != "a" or given.get("href"), element.text
    elif element.tag == "progress" or given.get("role") in ("region", "log", "search", "dialog"):
        assert given.get("aria-label") or given.get("aria-labelledby"), given
    elif element.tag == "nav":
        assert given.get("aria-label")
    elif element.tag == "svg" and not ancestor_is_hidden(element):
        assert given.get("role") == "img", given
        assert given.get("aria-label") or given.get("aria-labelledby"), given


def ancestor_is_hidden(element: Element) -> bool:
    """Whether an element is left out by screen readers, or is part of an image."""
    if element.attributes.get("aria-hidden") == "true":
        return True
    parent = element.parent
    return parent is not None and (parent.tag == "svg" or ancestor_is_hidden(parent))
