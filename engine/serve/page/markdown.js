// A small safe part of Markdown: what the model writes becomes text nodes within elements made here, never HTML.
const markdown = (() => {
  const element = (name, ...children) => {
    const made = document.createElement(name);
    made.append(...children);
    return made;
  };
  const INLINE = /`([^`\n]+)`|\*\*([^*\n]+)\*\*|\*([^*\s][^*\n]*)\*|\[([^\]\n]+)\]\((https?:\/\/[^\s()]+)\)/g;

  const inline = (text) => {
    const parts = [];
    let at = 0;
    for (const found of text.matchAll(INLINE)) {
      parts.push(text.slice(at, found.index));
      at = found.index + found[0].length;
      if (found[1] !== undefined) parts.push(element("code", found[1]));
      else if (found[2] !== undefined) parts.push(element("strong", found[2]));
      else if (found[3] !== undefined) parts.push(element("em", found[3]));
      else {
        const link = element("a", found[4]);
        link.href = found[5];
        link.rel = "noopener noreferrer nofollow";
        link.target = "_blank";
        parts.push(link);
      }
    }
    parts.push(text.slice(at));
    return parts.filter((part) => part !== "");
  };

  const lines = (texts) => texts.flatMap((text, i) => (i ? [element("br"), ...inline(text)] : inline(text)));

  // Blocks of a text, as nodes.
  return (text) => {
    const rows = text.split("\n");
    const blocks = [];
    let at = 0;
    const taken = (test) => {
      const some = [];
      while (at < rows.length && test(rows[at])) some.push(rows[at++]);
      return some;
    };
    while (at < rows.length) {
      const row = rows[at];
      const fence = row.match(/^\s{0,3}(`{3,}|~{3,})/);
      const heading = row.match(/^(#{1,6})\s+(.*)$/);
      if (!row.trim()) {
        at++;
      } else if (fence) {
        at++;
        const code = taken((one) => !one.trim().startsWith(fence[1]));
        at++;
        blocks.push(element("pre", element("code", code.join("\n"))));
      } else if (heading) {
        at++;
        blocks.push(element(`h${Math.min(6, heading[1].length + 3)}`, ...inline(heading[2])));
      } else if (/^\s{0,3}>/.test(row)) {
        const quoted = taken((one) => /^\s{0,3}>/.test(one)).map((one) => one.replace(/^\s*>\s?/, ""));
        blocks.push(element("blockquote", ...lines(quoted)));
      } else if (/^\s*([-*+]|\d{1,9}[.)])\s+/.test(row)) {
        const ordered = /^\s*\d/.test(row);
        const item = ordered ? /^\s*\d{1,9}[.)]\s+/ : /^\s*[-*+]\s+/;
        const list = element(ordered ? "ol" : "ul");
        if (ordered) list.start = parseInt(row, 10);
        for (const one of taken((one) => item.test(one))) list.append(element("li", ...inline(one.replace(item, ""))));
        blocks.push(list);
      } else {
        const ends = /^(\s*$|\s{0,3}(`{3,}|~{3,}|>)|#{1,6}\s|\s*([-*+]|\d{1,9}[.)])\s+)/;
        const first = rows[at++];
        blocks.push(element("p", ...lines([first, ...taken((one) => !ends.test(one))])));
      }
    }
    return blocks;
  };
})();
