// The rater's page: shows one question at a time, saves each answer before it goes on, and resumes anywhere.
"use strict";

const token = location.hash.slice(1);
const at = (id) => document.getElementById(id);
const state = { session: null, here: 0, shownAt: 0, saving: false, introduced: new Set() };
const WORDS = { yes: "Yes", no: "No", left: "Image A", right: "Image B", pass: "Pass: hard to say" };
const RETRY_MS = 1500;
const SETTLE_MS = 300; // after its pictures appear: the second half of a double click answers no question

// --- the server ---------------------------------------------------------------------------------------

async function ask(path, body) {
  const headers = { Authorization: `Bearer ${token}` };
  if (body) headers["Content-Type"] = "application/json";
  const options = { method: body ? "POST" : "GET", headers, cache: "no-store" };
  if (body) options.body = JSON.stringify(body);
  const reply = await fetch(path, options);
  const told = await reply.json();
  return { status: reply.status, told };
}

// Sending the same ballot again is harmless, so a lost connection or a restarted server is waited out.
async function send(ballot) {
  for (;;) {
    try {
      const reply = await ask("api/ballot", ballot);
      if (reply.status < 500) return reply;
    } catch { /* no connection */ }
    say("Not saved yet. Trying again \u2026", "warn");
    await new Promise((done) => setTimeout(done, RETRY_MS));
  }
}

async function choose(answer) {
  const question = state.session.questions[state.here];
  if (state.saving || !question || performance.now() - state.shownAt < SETTLE_MS) return;
  if (question.answer === answer) return go(state.here + 1);
  state.saving = true;
  for (const button of document.querySelectorAll("button.answer")) {
    button.setAttribute("aria-disabled", "true");
    button.setAttribute("aria-pressed", String(button.dataset.answer === answer));
  }
  const reply = await send({ question: question.id, answer, revision: question.revision });
  state.saving = false;
  if (reply.status !== 200 && reply.status !== 409) return fail(reply.told.error);
  question.answer = reply.told.answer;
  question.revision = reply.told.revision;
  if (reply.status === 409) {
    draw();
    return say("You answered this question before, perhaps in another window: this is that answer. " +
      "Choose again to change it.", "warn");
  }
  go(state.here + 1);
  say(reply.told.outcome === "changed" ? "Answer changed." : "Answer saved.");
}

// --- the page -----------------------------------------------------------------------------------------

function make(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

function say(text, kind = "") {
  at("status").textContent = text;
  at("status").className = kind;
}

function fail(text) {
  at("footer").hidden = true;
  show(make("h1", { tabindex: "-1" }, "This does not work"), make("p", {}, text));
}

function show(...parts) {
  at("main").replaceChildren(...parts);
  const heading = at("main").querySelector("h1");
  if (heading) heading.focus({ preventScroll: true });
  window.scrollTo(0, 0);
}

// A step of its own in the browser's history, so that its back button goes one question back.
function go(number) {
  state.here = number;
  history.pushState({ here: number }, "");
  say("");
  draw();
}

function draw() {
  const { questions } = state.session;
  const answered = questions.filter((q) => q.answer !== null).length;
  at("progress").max = questions.length;
  at("progress").value = answered;
  at("count").textContent = `${answered} of ${questions.length} answered`;
  if (state.here >= questions.length) return finish(questions);
  const question = questions[state.here];
  const fresh = !questions.some((q) => q.kind === question.kind && q.answer !== null);
  if (fresh && !state.introduced.has(question.kind)) return introduce(question.kind);
  ask_about(question);
  preload(questions[state.here + 1]);
}

function introduce(kind) {
  const kinds = Object.keys(state.session.parts).filter((k) => state.session.questions.some((q) => q.kind === k));
  const part = state.session.parts[kind];
  const begin = make("button", { class: "main" }, "Begin");
  begin.addEventListener("click", () => { state.introduced.add(kind); draw(); });
  const many = state.session.questions.filter((q) => q.kind === kind).length;
  show(
    make("p", { class: "eyebrow" }, `Part ${kinds.indexOf(kind) + 1} of ${kinds.length}`),
    make("h1", { tabindex: "-1" }, part.title),
    make("p", { class: "lede" }, part.question),
    make("p", {}, part.guidance),
    make("p", {}, "There is no right answer to find: we ask what you see. If it is difficult to determine, pass."),
    make("p", { class: "quiet" }, `${many} ${many === 1 ? "question" : "questions"}. Every answer is saved at once; ` +
      "you may close this page and open your link again at any time."),
    make("p", {}, begin),
  );
}

function ask_about(question) {
  const part = state.session.parts[question.kind];
  const pair = question.kind === "preference";
  const answers = pair ? ["left", "right", "pass"] : ["yes", "no", "pass"];
  const parts = [make("h1", { tabindex: "-1" }, part.question), make("p", { class: "quiet" }, part.guidance)];
  if (question.kind !== "subject") parts.push(make("p", { class: "prompt" }, "\u201c" + question.prompt + "\u201d"));
  parts.push(pictures(question, pair));
  const buttons = answers.map((answer, n) => button_of(answer, n, question.answer));
  parts.push(make("div", { class: `answers ${question.kind}`, role: "group", "aria-label": "Your answer" }, ...buttons));
  parts.push(moves(question));
  show(...parts);
  wait_for_pictures();
}

// Nobody judges what they have not seen: until then the answers wait.
async function wait_for_pictures() {
  const images = [...document.querySelectorAll("main img")];
  state.shownAt = Infinity;
  at("main").classList.add("waiting");
  await Promise.allSettled(images.map((image) => image.decode()));
  if (images[0].isConnected) {
    at("main").classList.remove("waiting");
    state.shownAt = performance.now();
  }
}

function pictures(question, pair) {
  const given = question.kind === "text" ? [] : question.photos.map((name, n, all) =>
    picture(name, all.length > 1 ? `Given image ${n + 1} of ${all.length}` : "Given image"));
  const judged = question.pictures.map((name, n) => picture(name, pair ? `Image ${"AB"[n]}` : "Image"));
  const boxes = [];
  if (given.length) {
    boxes.push(make("section", { class: "given", "aria-label": "Given" },
      make("h2", {}, given.length > 1 ? "Given images" : "Given image"),
      make("div", { class: "photos" }, ...given)));
  }
  const sides = judged.map((image, n) => make("figure", {}, make("figcaption", {}, pair ? `Image ${"AB"[n]}` : "Image"), image));
  boxes.push(make("section", { class: "judged", "aria-label": "To judge" }, ...sides));
  return make("div", { class: `pictures ${question.kind}` }, ...boxes);
}

function picture(name, alt) {
  const image = make("img", { src: `picture/${name}`, alt });
  image.addEventListener("load", () => {
    image.classList.add("loaded"); // until then it keeps a square free, so that the answers do not jump
    image.classList.toggle("pixels", Math.max(image.naturalWidth, image.naturalHeight) <= 128);
  });
  image.addEventListener("error", () => say("A picture could not be loaded. Please reload this page.", "warn"));
  return image;
}

function preload(question) {
  for (const name of question?.pictures ?? []) new Image().src = `picture/${name}`;
}

function button_of(answer, n, standing) {
  const key = make("kbd", { "aria-hidden": "true" }, String(n + 1));
  const pressed = String(standing === answer);
  const button = make("button", { class: "answer", "data-answer": answer, "aria-pressed": pressed }, key, WORDS[answer]);
  button.addEventListener("click", () => choose(answer));
  return button;
}

function moves(question) {
  const back = make("button", { class: "plain" }, "\u2190 Back");
  back.addEventListener("click", () => { if (state.here > 0 && !state.saving) go(state.here - 1); });
  if (state.here === 0) back.disabled = true;
  const next = make("button", { class: "plain" }, "Next \u2192");
  next.addEventListener("click", () => { if (!state.saving) go(state.here + 1); });
  if (question.answer === null) next.disabled = true;
  const place = make("span", { class: "quiet" }, `Question ${state.here + 1} of ${state.session.questions.length}`);
  return make("nav", { "aria-label": "Questions" }, back, place, next);
}

function finish(questions) {
  const open = questions.findIndex((q) => q.answer === null);
  if (open >= 0) return go(open);
  const back = make("button", { class: "plain" }, "\u2190 Back");
  back.addEventListener("click", () => go(questions.length - 1));
  show(
    make("h1", { tabindex: "-1" }, "Thank you"),
    make("p", { class: "lede" }, `All ${questions.length} answers are saved.`),
    make("p", {}, "You can close this page. If you change your mind, go back and choose again."),
    make("nav", { "aria-label": "Questions" }, back),
  );
}

// --- beginning ----------------------------------------------------------------------------------------

function on_key(event) {
  if (!at("keys").checked || event.repeat || event.ctrlKey || event.metaKey || event.altKey) return;
  const button = document.querySelectorAll("button.answer")[Number(event.key) - 1];
  if (button) { event.preventDefault(); button.click(); }
}

async function begin() {
  if (!token) return fail("Please open the whole link that you were sent: it ends with a # and a long word.");
  let reply;
  try {
    reply = await ask("api/session");
  } catch {
    return fail("The study's server does not answer. Your answers so far are saved; please try again later.");
  }
  if (reply.status !== 200) return fail(reply.told.error);
  state.session = reply.told;
  document.title = at("title").textContent = reply.told.title;
  at("progress").hidden = at("footer").hidden = false;
  const open = reply.told.questions.findIndex((q) => q.answer === null);
  state.here = open < 0 ? reply.told.questions.length : open;
  history.replaceState({ here: state.here }, "");
  draw();
}

addEventListener("popstate", (event) => {
  if (state.session && !state.saving && event.state) { state.here = event.state.here; say(""); draw(); }
});
addEventListener("hashchange", () => location.reload());
addEventListener("beforeunload", (event) => { if (state.saving) event.preventDefault(); });
document.addEventListener("keydown", on_key);
begin();
