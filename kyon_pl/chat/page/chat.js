// The chat panels, as Gradio's HTML components: they show messages (see shown.py), keep the conversation in this
// browser, and tell the server what to do. What visitors and models write is only ever set as text.
window.kyon = (() => {
  const config = JSON.parse(document.getElementById("kyon-config").textContent);
  const isChinese = (navigator.language || "en").toLowerCase().startsWith("zh");
  const words = config.labels[isChinese ? 1 : 0];
  const KEY = "kyon_pl.conversation.", ROLE = "kyon_pl.role", SAVE_MS = 300, COPIED_MS = 1500, UNFINISHED = " […]";
  // role: of the shown conversation; null while another one is opened, when nothing is kept
  const state = {busy: false, role: null, action: "", saved: "", panels: [], timer: 0};
  const main = () => state.panels.find((panel) => panel.isMain);
  const turns = () => main().messages().filter((message) => !message.metadata.greeting);
  const box = () => document.querySelector("#message textarea");

  function make(tag, attributes = {}, ...children) {
    const part = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (name.startsWith("on")) part.addEventListener(name.slice(2), value);
      else if (value === true) part.setAttribute(name, "");
      else if (value !== false) part.setAttribute(name, value);
    }
    part.append(...children);
    return part;
  }

  const button = (text, onclick, more = {}) => make("button", {type: "button", onclick, ...more}, text);
  const CHARACTERS = {"&lt;": "<", "&gt;": ">", "&quot;": '"', "&#x27;": "'", "&amp;": "&"};
  const plain = (text) => text.replace(/&(lt|gt|quot|#x27|amp);/g, (entity) => CHARACTERS[entity]);
  const textOf = (message) => plain(message.content[0].text);
  const replyOf = (message) => textOf(message).slice(0, message.metadata.stopped ? undefined : -UNFINISHED.length);

  // ---- kept in the browser

  function read(key) {
    try { return localStorage.getItem(key); } catch { return null; } // storage can be blocked
  }

  function write(key, text) {
    try { text === null ? localStorage.removeItem(key) : localStorage.setItem(key, text); } catch { /* or full */ }
  }

  function row(messages) {
    const pair = (version) => [plain(version[0]), version[1]];
    return JSON.stringify({messages: messages.map((message) => {
      const about = message.metadata;
      if (message.role === "user")
        return {role: "user", content: plain(about.question), typed: textOf(message)};
      return {
        role: "assistant", content: replyOf(message), stopped: about.stopped, versions: about.versions.map(pair),
        memories: about.memories.map(plain), base: about.base && pair(about.base),
      };
    })});
  }

  function save() {
    clearTimeout(state.timer);
    state.timer = 0;
    if (state.role === null) return;
    let messages = turns();
    if (messages.length % 2) messages = messages.slice(0, -1);
    while (messages.length && new Blob([row(messages)]).size > config.bytes) messages = messages.slice(2);
    write(KEY + state.role, messages.length ? row(messages) : null);
  }

  function saveSoon() {
    if (!state.timer) state.timer = setTimeout(save, SAVE_MS);
  }

  // ---- what Gradio's events call, with the values of their inputs

  function open(role, values) {
    if (state.role !== null) save();
    clearTimeout(state.timer);
    state.timer = 0;
    state.role = null;
    write(ROLE, role);
    state.saved = read(KEY + role) ?? "";
    return [state.saved, role, ...values.slice(2)];
  }

  function reopen(...values) {
    const role = read(ROLE);
    return open(config.roles.some(([name]) => name === role) ? role : values[1], values);
  }

  function opened(role) {
    state.role = role ?? "";
    setBusy(false);
    if (state.saved && !turns().length) ask(words.damaged, [words.close]);
    state.saved = "";
  }

  function begin(...values) {
    setBusy(true);
    box().focus();
    return values;
  }

  function setBusy(busy) {
    state.busy = busy;
    state.panels.forEach((panel) => panel.show());
    checkSend();
  }

  const act = (name, action) => {
    state.action = JSON.stringify(action ?? {});
    main().trigger(name);
  };

  function download(text) {
    const link = make("a", {href: URL.createObjectURL(new Blob([text], {type: "application/jsonl"}))});
    link.download = "conversation.jsonl";
    link.click();
    URL.revokeObjectURL(link.href);
  }

  // ---- small helpers of the page

  async function copy(text, pressed) {
    if (window.isSecureContext) await navigator.clipboard.writeText(text);
    else { // over plain HTTP, browsers have no clipboard but this one
      const area = make("textarea");
      area.value = text;
      document.body.append(area);
      area.select();
      document.execCommand("copy");
      area.remove();
      pressed.focus();
    }
    pressed.textContent = words.copied;
    setTimeout(() => { pressed.textContent = words.copy; }, COPIED_MS);
  }

  function ask(question, answers = [words.cancel, words.go_on]) {
    const dialog = make("dialog", {class: "kyon-dialog", "aria-label": question}, make("p", {}, question));
    const choices = make("form", {method: "dialog"});
    answers.forEach((answer, i) => choices.append(make("button", {value: i, class: i ? "go-on" : ""}, answer)));
    dialog.append(choices);
    document.querySelector(".gradio-container").append(dialog);
    dialog.showModal();
    return new Promise((resolve) => dialog.addEventListener("close", () => {
      dialog.remove();
      box().focus();
      resolve(dialog.returnValue === "1");
    }));
  }

  function checkSend() {
    const send = document.getElementById("send");
    if (send && box()) send.disabled = state.busy || !box().value.trim();
  }

  async function bring(input) {
    const file = input.files[0];
    input.value = "";
    if (file.size > config.bytes) return void ask(words.too_large, [words.close]);
    const text = await file.text();
    if (turns().length && !(await ask(words.ask_import))) return;
    state.action = text;
    main().trigger("bring");
  }

  // ---- a panel

  function mount(element, trigger, props, watch) {
    const isMain = Boolean(element.closest("#tuned"));
    const log = make("div", {class: "log", role: "log", tabindex: 0});
    const title = make("h2", {class: "name"});
    const head = make("header", {}, title);
    const tools = isMain ? toolbar(head) : null;
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

    watch("value", () => { show(); if (isMain) saveSoon(); });
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

  function toolbar(head) {
    const file = make("input", {type: "file", accept: ".json,.jsonl", hidden: true, "aria-label": words.import, onchange: () => bring(file)});
    const stop = () => { act("stop"); setBusy(false); box().focus(); };
    const clear = async () => { if (await ask(words.ask_clear, [words.cancel, words.clear])) { act("clear"); setBusy(false); } };
    const simple = (name) => () => act(name);
    const undo = () => { act("undo"); setBusy(false); };
    const pressed = {stop, retry: simple("retry"), undo, clear, export: simple("export"), import: () => file.click()};
    const buttons = Object.fromEntries(Object.entries(pressed).map(([id, onclick]) => [id, button(words[id], onclick, {id})]));
    const settings = button(words.settings, () => {
      const isOpen = document.getElementById("page").classList.toggle("kyon-settings");
      settings.setAttribute("aria-expanded", isOpen);
    }, {id: "open-settings", "aria-expanded": "false"});
    head.append(settings);
    head.append(make("div", {class: "tools", role: "toolbar", "aria-label": words.tools}, ...Object.values(buttons), file));
    document.addEventListener("keydown", (event) => {
      if (event.key === "Escape" && state.busy && !document.querySelector(".kyon-dialog")) stop();
    });
    return (hasTurns) => {
      const dead = {
        stop: !state.busy, retry: state.busy || !hasTurns, undo: !hasTurns, clear: !hasTurns,
        export: state.busy || !hasTurns, import: state.busy,
      };
      for (const [id, isDead] of Object.entries(dead)) buttons[id].disabled = isDead;
    };
  }

  document.documentElement.lang = isChinese ? "zh-CN" : "en";
  window.addEventListener("pagehide", save);
  document.addEventListener("input", checkSend);
  document.addEventListener("keydown", (event) => { // nothing to send, or not yet
    if (event.target === box() && event.key === "Enter" && !event.shiftKey && (state.busy || !box().value.trim())) {
      event.preventDefault();
      event.stopImmediatePropagation();
    }
  }, true);
  // Gradio's own messages are English
  new MutationObserver(() => document.querySelectorAll(".toast-title, .toast-message-text").forEach(({firstChild: text}) => {
    const said = words[text?.data?.trim()];
    if (said && said !== text.data) text.data = said;
  })).observe(document.body ?? document.documentElement, {childList: true, subtree: true});
  const chosen = (...values) => [state.action, ...values.slice(1)];
  return {
    mount, reopen, opened, begin, download,
    switchTo: (...values) => open(values[1] ?? "", values),
    end: () => setBusy(false),
    chosen,
    beginChosen: (...values) => begin(...chosen(...values)),
  };
})();
