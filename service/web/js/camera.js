// Take a photo: in a dialog where the browser allows the page to use the camera, otherwise with the phone's camera app.

import { $ } from "./dom.js";

/** Return a JPEG blob, or null where none was taken. fallback: called where the page may not use a camera. */
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
  await new Promise((resolve) => dialog.addEventListener("close", resolve, { once: true }));
  let photo = null;
  if (dialog.returnValue === "shoot" && video.videoWidth) {
    const canvas = new OffscreenCanvas(video.videoWidth, video.videoHeight);
    canvas.getContext("2d").drawImage(video, 0, 0);
    photo = await canvas.convertToBlob({ type: "image/jpeg", quality: 0.92 });
  }
  for (const track of stream.getTracks()) track.stop();
  video.srcObject = null;
  return photo;
}
