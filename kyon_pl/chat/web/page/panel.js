// A panel of messages, see shown.py: Gradio's HTML component gives it an element and its value.
kyon.panels = (page) => {
  const {config, words, box, make, button, plain, textOf, replyOf, copy, ask} = kyon;
  const {state, act} = page;

  function mount(element, trigger, props, watch) {
    const isMain = Boolean(element.closest("#tuned"));
    const log = make("div", {class: "log", role: "log", tabindex: 0});
    const title = make(isMain ? "h1" : "h2", {class: "name"});
    const head = make("header", {}, title);
    const tools = isMain ? page.toolbar(head) : null;
    const panel = {isMain, trigger, messages: () => props.value || [], shown: [], show};
    element.replaceChildren(head, log);
    state.panels = [...state.panels.filter((other) => other.isMain !== isMain), panel];

    function show() {
      const name = isMain ? nameOf(state.role) : words.base, messages = panel.messages();
      title.textContent = name;
      log.setAttribute("aria-label", name);
      log.setAttribute("aria-busy", state.busy);
      const atEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 60;
      messages.forEach((message, i) => showMessage(message, i, name, messages.length));
      panel.shown.splice(messages.length).forEach((old) => old.node.remove());
      log.querySelector(".empty")?.remove();
      if (!messages.length) log.append(make("p", {class: "empty"}, words.empty));
      if (atEnd) log.scrollTop = log.scrollHeight;
      tools?.(messages.some((message) => !message.metadata.greeting));
    }

    function showMessage(message, i, name, count) {
      const about = message.metadata, isGrowing = state.busy && about.running;
      const key = JSON.stringify([message.role, isGrowing ? about.turn : about, state.busy, name, i === count - 1]);
      const old = panel.shown[i];
      if (old?.key !== key) {
        const node = build(message, name, i, count, isGrowing);
        old ? old.node.replaceWith(node) : log.append(node);
        panel.shown[i] = {key, node};
      }
      const bubble = panel.shown[i].node.querySelector(".message");
      if (bubble && bubble.textContent !== textOf(message)) bubble.textContent = textOf(message);
    }

    function build(message, name, i, count, isGrowing) {
      const about = message.metadata, isUser = message.role === "user";
      const node = make("article", {class: `turn ${isUser ? "of-user" : "of-bot"}`, "aria-label": isUser ? words.you : name});
      node.append(make("div", {class: "name", "aria-hidden": "true"}, isUser ? words.you : name));
      node.append(make("div", {class: `message ${isUser ? "user" : "bot"}`}));
      if (about.memories?.length) node.append(memories(about.memories));
      if (!isGrowing) node.append(actions(message, node, i, count));
      return node;
    }

    function actions(message, node, i, count) {
      const about = message.metadata, row = make("div", {class: "actions"}), isUser = message.role === "user";
      const text = isUser || about.greeting ? textOf : replyOf;
      const isIdle = isMain && !state.busy && !about.greeting;
      const cut = async () => i + (isUser ? 2 : 1) >= count || await ask(words.ask_cut);
      if (isIdle && about.versions?.length > 1) row.append(...versions(about));
      row.append(button(words.copy, (event) => copy(text(message), event.currentTarget), {class: "copy"}));
      if (isIdle && isUser) row.append(button(words.edit, () => edit(message, node, cut), {class: "edit"}));
      if (isIdle && !isUser)
        row.append(button(words.again, async () => { if (await cut()) act("again", {turn: about.turn}); }, {class: "again"}));
      return row;
    }

    function versions(about) {
      const {turn, version, versions} = about;
      const go = (to) => () => act("choose", {turn, version: to});
      return [
        button("‹", go(version - 1), {class: "previous", "aria-label": words.previous, disabled: version === 0}),
        make("span", {class: "number"}, `${version + 1}/${versions.length}`),
        button("›", go(version + 1), {class: "next", "aria-label": words.next, disabled: version === versions.length - 1}),
      ];
    }

    function edit(message, node, cut) {
      const area = make("textarea", {"aria-label": words.edit, rows: 3, maxlength: config.characters});
      const close = () => { form.replaceWith(...hidden); box().focus(); };
      const send = async () => {
        if (!area.value.trim() || !(await cut())) return;
        close();
        act("again", {turn: message.metadata.turn, text: area.value});
      };
      const form = make("div", {class: "editor"}, area, make("div", {class: "actions"},
        button(words.cancel, close, {class: "cancel"}), button(words.send, send, {class: "go-on"})));
      area.value = textOf(message);
      area.addEventListener("keydown", (event) => {
        if (event.isComposing) return;
        if (event.key === "Escape") { event.stopPropagation(); close(); }
        if (event.key === "Enter" && !event.shiftKey) { event.preventDefault(); send(); }
      });
      const hidden = [node.querySelector(".message"), node.querySelector(".actions")];
      hidden[1].remove();
      hidden[0].replaceWith(form);
      area.focus();
    }

    watch("value", () => { show(); if (isMain) page.saveSoon(); });
    show();
  }

  function nameOf(role) {
    return config.roles.find(([name]) => role && name === role)?.[1] ?? words.tuned;
  }

  function memories(texts) {
    const list = make("ol");
    texts.forEach((text) => list.append(make("li", {}, plain(text))));
    return make("details", {class: "memories"}, make("summary", {}, `${words.memories} (${texts.length})`), list);
  }

  return mount;
};
