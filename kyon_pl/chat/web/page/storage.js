// The conversation that is kept in this browser, of each character.
kyon.storage = (state, turns) => {
  const {config, plain, textOf, replyOf} = kyon;
  const KEY = "kyon_pl.conversation.", ROLE = "kyon_pl.role", SAVE_MS = 300;

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

  // The role that was open, if it is still there.
  function lastRole(initial) {
    const role = read(ROLE);
    return config.roles.some(([name]) => name === role) ? role : initial;
  }

  // The saved conversation of a role; the one before is saved.
  function change(role) {
    if (state.role !== null) save();
    clearTimeout(state.timer);
    state.timer = 0;
    state.role = null;
    write(ROLE, role);
    return read(KEY + role) ?? "";
  }

  return {save, saveSoon, lastRole, change};
};
