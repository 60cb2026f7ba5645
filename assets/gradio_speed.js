// Three costs of Gradio 6.31 that grow with the page, taken out where they arise. `sources`: its modules.
// 1. When a handler ends, its inputs are told of the status as if they were streamed to, and from then on of
//    that of every other handler; each telling looks through all components.
// 2. The events of each component are looked for among all handlers.
// 3. What a handler without a component of its own follows is looked for among all components.
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
    const state = tree.get_state;
    tree.get_state = async function (id) { return id === null ? null : state.call(this, id); };
  }
});
