/* Search from a disk: browsers start no worker from file:, so there its script runs in a hidden frame. */
if (location.protocol === "file:") {
  window.Worker = window.IFrameWorker = class extends EventTarget {
    constructor(url) {
      super();
      const frame = document.createElement("iframe");
      frame.hidden = true;
      frame.srcdoc = `<body><script src="${new URL(url, location)}"></script></body>`;
      this.ready = new Promise((resolve) => (frame.onload = () => resolve(frame.contentWindow)));
      document.body.append(frame);
      this.ready.then((loaded) => {
        loaded.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }));
        loaded.importScripts = (...sources) => sources.reduce((before, src) => before.then(() => new Promise((resolve, reject) => {
          const script = loaded.document.createElement("script");
          Object.assign(script, { src, onload: resolve, onerror: reject });
          loaded.document.body.append(script);
        })), Promise.resolve());
      });
    }
    postMessage(data) {
      this.ready.then((loaded) => loaded.dispatchEvent(new loaded.MessageEvent("message", { data })));
    }
    terminate() {}
  };
}
