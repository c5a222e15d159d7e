// Requests to the service. Its problem documents become errors with a readable message.

let apiKey = "";

/** An error response, or no response at all (status 0). */
export class Problem extends Error {
  constructor(status, document, retryAfter) {
    super(document.detail ?? `The service answered ${status}.`);
    this.status = status;
    this.code = document.code ?? "";
    this.retryAfter = Number(retryAfter) || 0;
  }
}

export function setApiKey(value) {
  apiKey = value;
}

export async function model() {
  return (await send("model", { method: "GET" })).json();
}

/**
 * Send an image. options: the query. With `form` (other fields) the request is multipart, else the raw image.
 * accept: the media type of the response; JSON is parsed, an image is returned as a blob.
 */
export async function post(path, image, options, { form, accept = "application/json", signal } = {}) {
  const headers = { Accept: accept };
  let body = image;
  if (form) {
    body = new FormData();
    body.append("image", image, "image");
    for (const [name, value] of Object.entries(form)) body.append(name, value);
  } else {
    headers["Content-Type"] = image.type || "application/octet-stream";
  }
  const response = await send(address(path, options), { method: "POST", body, headers, signal });
  return accept === "application/json" ? response.json() : response.blob();
}

export function address(path, options) {
  const query = new URLSearchParams(Object.entries(options).filter(([, value]) => value !== undefined));
  return query.size ? `${path}?${query}` : path;
}

/** Return the same request as a curl command. */
export function curl(path, image, name, options, { form, accept } = {}) {
  const quote = (text) => `'${String(text).replaceAll("'", "'\\''")}'`;
  const parts = ["curl -s"];
  if (form) {
    parts.push(`-F image=@${quote(name)}`);
    for (const [field, value] of Object.entries(form)) parts.push(`-F ${quote(`${field}=${value}`)}`);
  } else {
    parts.push(`--data-binary @${quote(name)}`, `-H ${quote(`Content-Type: ${image.type || "image/jpeg"}`)}`);
  }
  if (accept) parts.push(`-H ${quote(`Accept: ${accept}`)}`);
  if (apiKey) parts.push(`-H "Authorization: Bearer $FRCNN_KEY"`);
  parts.push(quote(new URL(address(path, options), document.baseURI)));
  return parts.join(" ");
}

async function send(url, request) {
  const headers = { ...request.headers, ...(apiKey && { Authorization: `Bearer ${apiKey}` }) };
  let response;
  try {
    response = await fetch(url, { ...request, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem(0, { detail: "The service cannot be reached. Is it running?" });
  }
  if (response.ok) return response;
  const document = await response.json().catch(() => ({}));
  throw new Problem(response.status, document, response.headers.get("Retry-After"));
}
