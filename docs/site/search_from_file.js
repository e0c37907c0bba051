// The search runs in a worker, which browsers refuse to a page that was opened from a file: there it runs in a hidden
// frame, which has the page's own origin. Everywhere else the browser's worker is taken.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super()
      this.frame = document.createElement("iframe")
      this.frame.hidden = true
      this.frame.srcdoc = "<!doctype html><title>search</title>"
      this.ready = new Promise((resolve, reject) => {
        this.frame.onload = () => {
          const inside = this.frame.contentWindow
          inside.postMessage = data => this.dispatchEvent(new MessageEvent("message", {data}))
          const script = inside.document.createElement("script")
          script.src = new URL(url, location)
          script.onload = () => resolve(inside)
          script.onerror = reject
          inside.document.head.append(script)
        }
      })
      document.body.append(this.frame)
    }

    postMessage(data) {
      this.ready.then(inside => inside.dispatchEvent(new MessageEvent("message", {data})))
    }

    terminate() {
      this.frame.remove()
    }
  }
}
