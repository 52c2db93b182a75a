// What the page does: its buttons and keys, and what Gradio's events call. It lets panels show the state.
Object.assign(kyon, (() => {
  const {config, words, box, make, button, ask} = kyon;
  // role: of the shown conversation; null while another one is opened, when nothing is kept
  const state = {busy: false, role: null, action: "", saved: "", panels: [], timer: 0};
  const main = () => state.panels.find((panel) => panel.isMain);
  const turns = () => main().messages().filter((message) => !message.metadata.greeting);
  const storage = kyon.storage(state, turns);

  // Functions that Gradio's events call with the values of their inputs: here, first the conversation and the role.
  function open(role, values) {
    state.saved = storage.change(role);
    return [state.saved, role, ...values.slice(2)];
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

  window.addEventListener("pagehide", storage.save);
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
    mount: kyon.panels({state, act, toolbar, saveSoon: storage.saveSoon}),
    reopen: (...values) => open(storage.lastRole(values[1] ?? ""), values),
    switchTo: (...values) => open(values[1] ?? "", values),
    opened,
    begin,
    end: () => setBusy(false),
    chosen,
    beginChosen: (...values) => begin(...chosen(...values)),
    download,
  };
})());
