// Small parts of the chat page, without its state. What visitors and models write is only ever set as text.
window.kyon = (() => {
  const config = JSON.parse(document.getElementById("kyon-config").textContent);
  const isChinese = (navigator.language || "en").toLowerCase().startsWith("zh");
  const words = config.labels[isChinese ? 1 : 0];
  const UNFINISHED = " […]", COPIED_MS = 1500;
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

  document.documentElement.lang = isChinese ? "zh-CN" : "en";
  return {config, words, box, make, button, plain, textOf, replyOf, copy, ask};
})();
