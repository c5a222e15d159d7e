// The service's answers, and its problems as errors that a person can read.

let key = "";

export class Problem extends Error {
  constructor(status, document, retryAfter) {
    super(document.detail ?? `The service answered ${status}.`);
    this.status = status;
    this.code = document.code ?? "";
    this.retryAfter = Number(retryAfter) || 0;
  }
}

export function useKey(value) {
  key = value;
}

export async function model() {
  return (await send("model", { method: "GET" })).json();
}

/**
 * Ask about a picture. options: the query. With `form` (other fields) the request is multipart, else the raw picture.
 * accept: the type of answer; JSON is parsed, a picture comes back as a blob.
 */
export async function ask(path, picture, options, { form, accept = "application/json", signal } = {}) {
  const headers = { Accept: accept };
  let body = picture;
  if (form) {
    body = new FormData();
    body.append("image", picture, "picture");
    for (const [name, value] of Object.entries(form)) body.append(name, value);
  } else {
    headers["Content-Type"] = picture.type || "application/octet-stream";
  }
  const answer = await send(address(path, options), { method: "POST", body, headers, signal });
  return accept === "application/json" ? answer.json() : answer.blob();
}

export function address(path, options) {
  const query = new URLSearchParams(Object.entries(options).filter(([, value]) => value !== undefined));
  return query.size ? `${path}?${query}` : path;
}

/** The same request for a terminal. */
export function curl(path, picture, name, options, { form, accept } = {}) {
  const quote = (text) => `'${String(text).replaceAll("'", "'\\''")}'`;
  const words = ["curl -s"];
  if (form) {
    words.push(`-F image=@${quote(name)}`);
    for (const [field, value] of Object.entries(form)) words.push(`-F ${quote(`${field}=${value}`)}`);
  } else {
    words.push(`--data-binary @${quote(name)}`, `-H ${quote(`Content-Type: ${picture.type || "image/jpeg"}`)}`);
  }
  if (accept) words.push(`-H ${quote(`Accept: ${accept}`)}`);
  if (key) words.push(`-H "Authorization: Bearer $FRCNN_KEY"`);
  words.push(quote(new URL(address(path, options), document.baseURI)));
  return words.join(" ");
}

async function send(url, request) {
  const headers = { ...request.headers, ...(key && { Authorization: `Bearer ${key}` }) };
  let answer;
  try {
    answer = await fetch(url, { ...request, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem(0, { detail: "The service cannot be reached. Is it running?" });
  }
  if (answer.ok) return answer;
  const document = await answer.json().catch(() => ({}));
  throw new Problem(answer.status, document, answer.headers.get("Retry-After"));
}
