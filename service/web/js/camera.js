// A picture from the camera: in a dialog where the browser lets a page see it, else through the phone's own camera.

import { $ } from "./dom.js";

/** A JPEG blob, or null. fallback: called where this page may not open a camera. */
export async function openCamera(fallback) {
  let stream;
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
  } catch {
    fallback();
    return null;
  }
  const [dialog, video] = [$("viewfinder"), $("video")];
  video.srcObject = stream;
  dialog.returnValue = "";
  dialog.showModal();
  await new Promise((done) => dialog.addEventListener("close", done, { once: true }));
  let shot = null;
  if (dialog.returnValue === "shoot" && video.videoWidth) {
    const canvas = new OffscreenCanvas(video.videoWidth, video.videoHeight);
    canvas.getContext("2d").drawImage(video, 0, 0);
    shot = await canvas.convertToBlob({ type: "image/jpeg", quality: 0.92 });
  }
  for (const track of stream.getTracks()) track.stop();
  video.srcObject = null;
  return shot;
}
