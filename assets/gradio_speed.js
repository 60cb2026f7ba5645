// Four costs of Gradio 6.31 that grow with the page, taken out where they arise. `sources`: its modules.
// 1. When a handler ends, its inputs are told of the status as if they were streamed to, and from then on of
//    that of every other handler; each telling looks through all components.
// 2. The events of each component are looked for among all handlers.
// 3. What is asked of a component, or told to it, or to none, is looked for among all of them: for each input and output of each
//    handler, and twice for each handler's triggers as the page opens. (What gr.render draws is not listed, and looked for so.)
// 4. As the page opens the tree of all components is built, and at once built again from the same.
Promise.all(sources.map(source => import(source))).then(modules => {
  const classes = modules.flatMap(module => Object.values(module))
    .filter(one => typeof one === 'function' && one.prototype);
  const having = name => classes.find(one => Object.hasOwn(one.prototype, name))?.prototype;

  const status = having('resolve_args');
  if (status) {
    const every = status.resolve_args;
    status.resolve_args = function (news) { return every.call(this, {...news, stream_state: null}); };
  }

  const tree = having('find_attached_events');
  if (tree) {
    const known = new WeakMap();
    const eventsOf = handlers => {
      const events = new Map();
      for (const handler of handlers) {
        for (const [id, event] of new Map([...handler.targets].reverse())) {  // the first of an id counts
          if (event) events.set(id, [...events.get(id) ?? [], event]);
        }
      }
      return events;
    };
    tree.find_attached_events = function (component, handlers) {
      if (!known.has(handlers)) known.set(handlers, eventsOf(handlers));
      component.props.shared_props.attached_events = known.get(handlers).get(component.id) ?? [];
      return component;
    };
    const rootOf = Object.getOwnPropertyDescriptor(tree, 'root').get, trees = new WeakMap();
    const list = (node, found) => { found.set(node.id, node); node.children.forEach(one => list(one, found)); return found; };
    const at = (tree, id) => {
      const root = rootOf.call(tree);
      if (!trees.has(root)) trees.set(root, list(root, new Map()));
      return trees.get(root).get(id);
    };
    for (const name of ['get_state', 'update_state']) {
      const whole = tree[name];
      tree[name] = async function (id, ...news) {
        if (id === null) return null;
        const node = at(this, id);  // there its search begins, and ends
        if (node) Object.defineProperty(this, 'root', {configurable: true, get() { delete this.root; return node; }});
        return whole.call(this, id, ...news);
      };
    }
    const built = new WeakSet(), anew = tree.reload;
    tree.reload = function (...given) { if (built.has(this)) anew.apply(this, given); else built.add(this); };
  }
});
