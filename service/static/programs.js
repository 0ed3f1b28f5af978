// What the page hands on: programs that ask for what is on screen, and a table of what was found.

const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`; // for a shell

/** A program in `language` that sends the picture `name` with the threshold, classes and model (if any) on screen. */
export function describe(language, address, name, least, classes, model) {
  const url = new URL(address);
  url.searchParams.set("score_threshold", least);
  for (const each of classes) url.searchParams.append("classes", each);
  if (model) url.searchParams.set("model", model);
  if (language === "curl") return `curl --data-binary @${quoted(name)} ${quoted(url.href)}`;
  if (language === "python") {
    return [
      "import json",
      "import urllib.request",
      "",
      `with open(${JSON.stringify(name)}, "rb") as file:`,
      `    request = urllib.request.Request(${JSON.stringify(url.href)}, data=file.read())`,
      "with urllib.request.urlopen(request) as answer:",
      '    for found in json.load(answer)["detections"]:',
      '        print(found["class_name"], found["score"], found["box_xyxy"])',
    ].join("\n");
  }
  return [
    `const answer = await fetch(${JSON.stringify(url.href)}, {`,
    '  method: "POST",',
    "  body: file, // a File, as of <input type=file>",
    "});",
    "const { detections } = await answer.json();",
    "for (const { class_name, score, box_xyxy } of detections) console.log(class_name, score, box_xyxy);",
  ].join("\n");
}

/** Rows { name, time, detections } as CSV with the columns of predict.py --save csv. */
export function toCsv(rows) {
  const cell = (value) => (/[",\n]/.test(String(value)) ? `"${String(value).replaceAll('"', '""')}"` : String(value));
  const lines = [["image", "time", "class_id", "class_name", "score", "x1", "y1", "x2", "y2"]];
  for (const { name, time, detections } of rows) {
    for (const { class_id, class_name, score, box_xyxy } of detections) {
      lines.push([name, time, class_id, class_name, score, ...box_xyxy]);
    }
  }
  return lines.map((line) => `${line.map(cell).join(",")}\n`).join("");
}
