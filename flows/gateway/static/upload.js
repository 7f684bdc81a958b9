// A bar for the upload. Without this script the form is sent by the browser itself, and does the same.
"use strict";
(() => {
  const form = document.getElementById("upload");
  if (!form) return;
  const [button, place, bar, text, problem] =
    ["button", ".progress", "#sent", "#sent-text", ".problem"].map((name) => form.querySelector(name));
  const mebibytes = (bytes) => `${(bytes / 1048576).toFixed(1)} MiB`;

  const fail = (what) => {
    problem.textContent = what;
    problem.hidden = false;
    place.hidden = true;
    button.disabled = false;
  };

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    problem.hidden = true;
    const size = Array.from(form.elements.file.files).reduce((sum, file) => sum + file.size, 0);
    const limit = Number(form.dataset.limit);
    if (size > limit) {
      fail(`These are ${mebibytes(size)}, more than ${mebibytes(limit)} at once. Choose fewer images.`);
      return;
    }
    const call = new XMLHttpRequest();
    call.open("POST", form.action);
    call.responseType = "document";
    call.setRequestHeader("Accept", "text/html");
    call.upload.addEventListener("progress", (now) => {
      const part = now.total ? now.loaded / now.total : 0;
      bar.value = 100 * part;
      text.textContent = part < 1 ? `${mebibytes(now.loaded)} of ${mebibytes(now.total)}` : "Sent. It is looked through …";
    });
    call.addEventListener("load", () => {
      if (call.status < 400) {
        window.location.assign(call.responseURL);
        return;
      }
      const said = call.response ? Array.from(call.response.querySelectorAll(".what, .cure")) : [];
      fail(said.map((part) => part.textContent).join(" ") || `The upload was refused (${call.status}).`);
    });
    call.addEventListener("error", () => fail("The upload broke off. Send it again."));
    button.disabled = true;
    place.hidden = false;
    call.send(new FormData(form));
  });
})();
