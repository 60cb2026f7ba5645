// An answer as people read it: Markdown's paragraphs, headings, lists, code and emphasis, built of elements that hold text only,
// so that nothing in an answer is markup of ours.
const make = (tag, about = {}, ...inner) => { const one = Object.assign(document.createElement(tag), about); one.append(...inner.filter(part => part != null)); return one; };

function inline(text) {
  const parts = text.split(/(`[^`\n]+`|\*\*[^*\n]+\*\*|\*[^*\s][^*\n]*\*)/);
  return parts.map((part, at) => {
    if (at % 2 === 0) return part;
    if (part[0] === '`') return make('code', {textContent: part.slice(1, -1)});
    return part.startsWith('**') ? make('b', {textContent: part.slice(2, -2)}) : make('i', {textContent: part.slice(1, -1)});
  });
}

function paragraphs(text) {
  const found = [];
  let list = null;
  for (const line of text.split('\n')) {
    const heading = line.match(/^#{1,6}\s+(.*)$/), item = line.match(/^\s*(?:[-*+]|(\d+)[.)])\s+(.*)$/);
    if (item) {
      const tag = item[1] ? 'ol' : 'ul';
      if (list?.tagName.toLowerCase() !== tag) found.push(list = make(tag, item[1] ? {start: Number(item[1])} : {}));
      list.append(make('li', {}, ...inline(item[2])));
      continue;
    }
    list = null;
    if (heading) found.push(make('p', {className: 'answer-heading'}, ...inline(heading[1])));
    else if (!line.trim()) found.push(null);
    else if (found.at(-1)?.tagName === 'P' && !found.at(-1).className) found.at(-1).append('\n', ...inline(line));
    else found.push(make('p', {}, ...inline(line)));
  }
  return found.filter(Boolean);
}

function answerText(text) {
  // A block of code that has not ended yet is one already while it streams.
  const parts = text.split(/^```[^\n]*\n?/m);
  return parts.flatMap((part, at) => (at % 2 ? [make('pre', {className: 'mono'}, make('code', {textContent: part.replace(/\n$/, '')}))] : paragraphs(part)));
}
